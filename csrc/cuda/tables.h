// Index tables of a plan on the device: the meaning of cpu/tables.h.  -1 stands for a dead unit, or for no neighbour,
// and so does any place that a table does not have.
#pragma once

#include <cstdint>

#include "cuda/place.h"

namespace specxai::cuda {

// mapped[i] = map[rows[i]] for the live ones, and -1 for the others; mapped may be rows.
void map_rows(const std::int32_t* rows, std::int64_t n_rows, const std::int32_t* map, std::int64_t n_map,
              std::int32_t* mapped, Place place);

// seen(s, g) = whether cells(neighbours(s, t), g) is set for any tap t; cells (n_inside, groups), seen (n_outside,
// groups), neighbours (n_outside, taps).
void any_neighbour(const std::uint8_t* cells, std::int64_t n_inside, std::int64_t groups,
                   const std::int32_t* neighbours, std::int64_t n_outside, std::int64_t taps, std::uint8_t* seen,
                   Place place);

// rows(s, g, t, c) = inside(neighbours(s, t), g, c), -1 where there is no neighbour; inside (n_inside, groups, depth),
// rows (n_outside, groups, taps, depth): each site's own inputs over all taps.
void tap_rows(const std::int32_t* inside, std::int64_t n_inside, std::int64_t groups, std::int64_t depth,
              const std::int32_t* neighbours, std::int64_t n_outside, std::int64_t taps, std::int32_t* rows,
              Place place);

}  // namespace specxai::cuda
