// Sparse sums of rows: residual adds, gates that a producer cannot take, seeds and results of a plan.
#pragma once

#include <cstdint>

namespace specxai {

//   output[out_row[o], :] (+)= sum over e in [begin[o], begin[o + 1]) of scale[e] * input[in_row[e], :]
//
// A row holds n_probes numbers; the rest of an output row, up to its stride, is set to zero.
template <class T>
struct RowSum {
  std::int64_t n_outputs, n_entries;
  const std::int32_t* begin;    // n_outputs + 1
  const std::int32_t* in_row;   // n_entries
  const T* scale;               // n_entries, null for ones
  const std::int32_t* out_row;  // n_outputs
};

// A checked sum; refers to the arrays it was made of, which must outlive it.
template <class T>
class RowSumStage {
 public:
  // Throws std::invalid_argument on any index out of range, and where two outputs share a row.
  explicit RowSumStage(const RowSum<T>& sum);

  // Throws std::invalid_argument unless the blocks hold every row that is read and written.  The blocks may be one,
  // if no row is both read and written.
  void run(const T* input, std::int64_t input_rows, std::int64_t input_stride, T* output, std::int64_t output_rows,
           std::int64_t output_stride, std::int64_t n_probes, bool accumulate) const;

 private:
  RowSum<T> sum_;
  std::int64_t rows_read_ = 0, rows_written_ = 0;
};

}  // namespace specxai
