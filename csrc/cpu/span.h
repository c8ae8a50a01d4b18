// A tall block against an orthonormal basis: its coefficients, and what is left of it.  Basis vectors are rows.
#pragma once

#include <cstdint>

#include "common/simd_level.h"

namespace specxai {

//   output (n_basis, width) = basis block, basis (n_basis, n), block (n, width), rows contiguous
//
// summed in double over chunks of span_chunk; the sums have one order, whatever the number of threads.
template <class T>
void coefficients(const T* basis, std::int64_t n_basis, const T* block, std::int64_t width, std::int64_t n,
                  double* output, SimdLevel level);

//   output (n, width) = block - basis^T factors, factors (n_basis, width); output may be block
template <class T>
void subtract(const T* basis, std::int64_t n_basis, const double* factors, const T* block, std::int64_t width,
              std::int64_t n, T* output, SimdLevel level);

// One ISA's implementation, on the columns [begin, end) of the basis, which are rows of the block.
constexpr std::int64_t span_chunk = 1024;
constexpr std::int64_t span_unit = 4;  // columns of a block that are taken together

// Adds to sums (n_basis, width); scratch of span_chunk * span_unit numbers.
template <class T>
using CoefficientsKernel = void (*)(const T* basis, std::int64_t n_basis, std::int64_t n, const T* block,
                                    std::int64_t width, std::int64_t begin, std::int64_t end, double* sums, T* scratch);

// factors (n_basis, width rounded up to span_unit).
template <class T>
using SubtractKernel = void (*)(const T* basis, std::int64_t n_basis, std::int64_t n, const T* factors, const T* block,
                                std::int64_t width, std::int64_t begin, std::int64_t end, T* output);

}  // namespace specxai
