// Gather-GEMM in full precision, the meaning of cpu/gather_gemm.h: live inputs and live outputs are gathered, so that
// no operation is spent on a dead one.
#pragma once

#include <cstdint>

#include "cuda/place.h"

namespace specxai::cuda {

// A list is a site (an output position) and a group, site * groups + group; a cell an input position and a group.  For
// the live outputs o in [out_begin[list], out_begin[list + 1]),
//
//   output[out_row[o], :] (+)= sum_{t, e} weight[group, t, in_column[e]][out_column[o]] * input[in_row[e], :]
//
// over taps t and the live inputs e of the cell under each, in this order, which never changes.  The adjoint is another
// stage, with sites at the input positions: no two lists write one row.
template <class T>
struct GatherGemm {
  std::int64_t n_sites, groups, taps, depth, width;  // depth inputs and width outputs of a group
  const std::int32_t* neighbours;                    // (n_sites, taps) positions, -1 for none
  const std::int32_t* in_begin;                      // (positions * groups + 1,)
  const std::int32_t* in_row;
  const std::int32_t* in_column;
  const std::int32_t* out_begin;  // (n_sites * groups + 1,)
  const std::int32_t* out_row;
  const std::int32_t* out_column;
  const T* weight;  // (groups * taps * depth, width)
};

// A list's taps are kept in shared memory.
constexpr std::int64_t most_taps = 1024;

// Rows of `probes` numbers, in_stride and out_stride apart; rows of addresses and sizes of sixteen bytes go faster.
template <class T>
void gather_gemm(const GatherGemm<T>& stage, const T* input, std::int64_t in_stride, T* output, std::int64_t out_stride,
                 std::int64_t probes, bool accumulate, Place place);

}  // namespace specxai::cuda
