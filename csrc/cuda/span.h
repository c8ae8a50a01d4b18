// A tall block against an orthonormal basis, the meaning of cpu/span.h: coefficients, what is left, and both of a
// second projection in one reading of the basis.  Basis vectors are rows; sums are in double.
#pragma once

#include <cstdint>

#include "cuda/place.h"

namespace specxai::cuda {

constexpr std::int64_t most_span_width = 32;  // columns of a block

// Numbers of double that `span` works in.
std::int64_t span_workspace(std::int64_t n_basis, std::int64_t width, std::int64_t n);

//   output       (n, width)       = block - basis^T before     where `before` (n_basis, width) is given
//   coefficients (n_basis, width) = basis output               where `coefficients` is given
//
// with output = block where `before` is null.  basis (n_basis, n), block (n, width), rows contiguous; output may be
// block, coefficients no part of before.  Rows of the block are summed in parts, which depend on n alone, and the parts
// in order.
template <class T>
void span(const T* basis, std::int64_t n_basis, const double* before, const T* block, std::int64_t width,
          std::int64_t n, T* output, double* coefficients, double* workspace, Place place);

}  // namespace specxai::cuda
