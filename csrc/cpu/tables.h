// Index tables of a plan.  -1 stands for a dead unit, or for no neighbour.  All throw std::invalid_argument on an index
// that is out of range.
#pragma once

#include <cstdint>

namespace specxai {

// mapped[i] = map[rows[i]] for the live ones, and -1 for the others; mapped may be rows.
void map_rows(const std::int32_t* rows, std::int64_t n_rows, const std::int32_t* map, std::int64_t n_map,
              std::int32_t* mapped);

// counts[g] = how many different rows lie in [begin[g], begin[g + 1]), where begin starts at 0 and never decreases.
void count_distinct(const std::int32_t* rows, std::int64_t n_rows, const std::int32_t* begin, std::int64_t n_groups,
                    std::int64_t* counts);

// seen(s, g) = whether cells(neighbours(s, t), g) is set for any tap t; cells (n_inside, groups), seen (n_outside,
// groups), neighbours (n_outside, taps).
void any_neighbour(const std::uint8_t* cells, std::int64_t n_inside, std::int64_t groups,
                   const std::int32_t* neighbours, std::int64_t n_outside, std::int64_t taps, std::uint8_t* seen);

}  // namespace specxai
