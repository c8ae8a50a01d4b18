// What CholeskyQR needs of tall blocks, in double precision whatever the block's own: the meaning of cpu/gram.h, and
// the triangular solve.
#pragma once

#include <cstdint>

#include "cuda/place.h"

namespace specxai::cuda {

// Numbers of double that `gram` works in.
std::int64_t gram_workspace(std::int64_t n_left, std::int64_t n_right, std::int64_t n_rows);

//   output (n_left, n_right) = left^T right, left (n_rows, n_left), right (n_rows, n_right), rows contiguous
//
// right may be left.  The rows are summed in parts, which depend on their number alone, and the parts in order.
template <class T>
void gram(const T* left, std::int64_t n_left, const T* right, std::int64_t n_right, std::int64_t n_rows,
          double* output, double* workspace, Place place);

// Columns that `solve_triangular` takes at most.
constexpr std::int64_t most_solved = 128;

//   output R = block, row by row: block and output (n_rows, width), R (width, width) upper triangular
//
// substituted in double and rounded at the end; output may be block.
template <class T>
void solve_triangular(const T* block, const double* R, std::int64_t n_rows, std::int64_t width, T* output, Place place);

}  // namespace specxai::cuda
