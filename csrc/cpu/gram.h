// Gram matrices of tall blocks in double precision, whatever the block's own: what CholeskyQR stands on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/simd_level.h"

namespace specxai {

//   output (n_left, n_right) = left^T right, left (n_rows, n_left), right (n_rows, n_right), rows contiguous
//
// accumulated in double; right may be left.  The sums have one order, whatever the number of threads.
template <class T>
void gram(const T* left, std::int64_t n_left, const T* right, std::int64_t n_right, std::int64_t n_rows,
          double* output, SimdLevel level);

// One ISA's implementation: adds the products of n_rows rows to sums (n_left, n_right rounded up to gram_unit), in
// scratch memory of gram_rows * (n_left + n_right + 2 gram_unit) doubles, aligned to 64 bytes as the sums are.
constexpr std::int64_t gram_rows = 32;
constexpr std::int64_t gram_unit = 8;

template <class T>
using GramKernel = void (*)(const T* left, std::int64_t n_left, const T* right, std::int64_t n_right,
                            std::int64_t n_rows, double* sums, double* scratch);

}  // namespace specxai
