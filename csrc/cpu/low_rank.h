// A diagonal plus a low rank in groups of rows: what norms and softmax are at one input, and their adjoints.
#pragma once

#include <cstdint>
#include <vector>

#include "common/simd_level.h"
#include "cpu/row_sum.h"

namespace specxai {

constexpr std::int64_t most_rank = 2;  // a centred norm: its mean, and the direction of the value itself

//   output[outside[g, i], :] (+)= diagonal[g, i] * input[inside[g, i], :] + sum_r left[g, r, i] * a[g, r, :]
//   a[g, r, :] = sum_j right[g, r, j] * input[inside[g, j], :]
//
// where -1 stands for a dead unit: it is zero as an input, and not written as an output.
template <class T>
struct LowRankTables {
  std::int64_t n_groups, size, rank;  // `size` units a group
  const std::int32_t* inside;         // (n_groups, size) rows
  const std::int32_t* outside;        // (n_groups, size) rows, no two the same
  const T* diagonal;                  // (n_groups, size)
  const T* left;                      // (n_groups, rank, size)
  const T* right;                     // (n_groups, rank, size)
};

// The live units only.  Group g reads the entries [read_begin[g], read_begin[g + 1]) and writes those of write_begin;
// the `rank` numbers of an entry lie together.
template <class T>
struct LowRank {
  std::int64_t n_groups, rank;
  const std::int32_t* read_begin;
  const std::int32_t* read_row;
  const T* right;
  const std::int32_t* write_begin;
  const std::int32_t* write_row;
  const std::int32_t* from_row;  // of the same unit as an input, -1 where that is dead
  const T* diagonal;
  const T* left;
};

// One ISA's implementation of the groups [first, last).
template <class T>
using LowRankKernel = void (*)(const LowRank<T>& stage, const Rows<T>& rows, std::int64_t first, std::int64_t last);

// A checked stage; owns its arrays.
template <class T>
class LowRankStage {
 public:
  // Throws std::invalid_argument on any index out of range, where two outputs share a row, and for a rank that is not
  // 1 to most_rank.
  explicit LowRankStage(const LowRankTables<T>& tables);

  std::int64_t multiply_adds() const { return multiply_adds_; }  // of one probe

  // Throws std::invalid_argument unless the blocks hold every row that is read and written.  The blocks may be one,
  // if no row is both read and written.  Equal arguments give equal bits, on any number of threads.
  void run(const Rows<T>& rows, std::int64_t input_rows, std::int64_t output_rows, SimdLevel level) const;

 private:
  std::vector<std::int32_t> read_begin_, read_row_, write_begin_, write_row_, from_row_;
  std::vector<T> right_, diagonal_, left_;
  std::int64_t rank_, rows_read_ = 0, rows_written_ = 0, multiply_adds_ = 0;
};

}  // namespace specxai
