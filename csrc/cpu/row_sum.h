// Sparse sums of rows: residual adds, gates that a producer cannot take, seeds and results of a plan.
#pragma once

#include <cstdint>
#include <vector>

namespace specxai {

//   output[to[e], :] (+)= scale[e] * input[from[e], :], over all e
//
// A row holds n_probes numbers; the rest of an output row, up to its width, is set to zero.
template <class T>
struct RowSum {
  std::int64_t n_entries;
  const std::int32_t* to;
  const std::int32_t* from;
  const T* scale;  // null for ones
};

// A checked sum, its entries brought together by the row that they are summed in, in their order; owns its arrays.
template <class T>
class RowSumStage {
 public:
  // Throws std::invalid_argument on a negative index.
  explicit RowSumStage(const RowSum<T>& sum);

  // Throws std::invalid_argument unless the blocks hold every row that is read and written.  The blocks may be one,
  // if no row is both read and written.
  void run(const T* input, std::int64_t input_rows, std::int64_t input_stride, T* output, std::int64_t output_rows,
           std::int64_t output_stride, std::int64_t output_width, std::int64_t n_probes, bool accumulate) const;

 private:
  std::vector<std::int32_t> begin_, from_, to_;  // row to_[o] sums the entries [begin_[o], begin_[o + 1])
  std::vector<T> scale_;
  std::int64_t rows_read_ = 0, rows_written_ = 0;
};

}  // namespace specxai
