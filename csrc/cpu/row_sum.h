// Sparse sums of rows: depthwise convolutions, average pools, residual adds, seeds and results of a plan.
#pragma once

#include <cstdint>
#include <vector>

#include "common/simd_level.h"

namespace specxai {

//   output[to[e], :] (+)= scale[e] * input[from[e], :], over all e
//
// Rows in `empty` are written too, though no entry may name them: they become zero.
template <class T>
struct RowSum {
  std::int64_t n_entries;
  const std::int32_t* to;
  const std::int32_t* from;
  const T* scale;  // null for ones
  std::int64_t n_empty;
  const std::int32_t* empty;
};

// The same with the entries brought together by the row that they are summed in, in their order: row to[o] sums the
// entries [begin[o], begin[o + 1]).
template <class T>
struct SortedSum {
  std::int64_t n_outputs, n_entries;
  const std::int32_t* begin;
  const std::int32_t* to;
  const std::int32_t* from;
  const T* scale;
};

// What one call adds: the blocks.  A row holds n_probes numbers; the rest of an output row, up to its width, is set to
// zero.
template <class T>
struct Rows {
  const T* input;
  std::int64_t input_stride;
  T* output;
  std::int64_t output_stride, output_width, n_probes;
  bool accumulate;
};

// One ISA's implementation of the outputs [first, last).
template <class T>
using RowSumKernel = void (*)(const SortedSum<T>& sum, const Rows<T>& rows, std::int64_t first, std::int64_t last);

// A checked sum; owns its arrays.
template <class T>
class RowSumStage {
 public:
  // Throws std::invalid_argument on a negative index.
  explicit RowSumStage(const RowSum<T>& sum);

  // Throws std::invalid_argument unless the blocks hold every row that is read and written.  The blocks may be one,
  // if no row is both read and written.  Equal arguments give equal bits, on any number of threads.
  void run(const Rows<T>& rows, std::int64_t input_rows, std::int64_t output_rows, SimdLevel level) const;

 private:
  std::vector<std::int32_t> begin_, from_, to_;
  std::vector<T> scale_;
  std::int64_t rows_read_ = 0, rows_written_ = 0;
};

}  // namespace specxai
