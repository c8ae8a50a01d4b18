#include "cpu/row_sum.h"

#include <algorithm>
#include <limits>
#include <string>

#include "common/checks.h"
#include "common/indices.h"
#include "common/threads.h"

namespace specxai {

template <class T>
RowSumStage<T>::RowSumStage(const RowSum<T>& sum) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  const std::int64_t n = sum.n_entries;
  require(n < limit, "a sum of 2^31 rows or more");
  rows_read_ = 1 + check_range(sum.from, n, 0, limit, "from");
  rows_written_ = 1 + check_range(sum.to, n, 0, limit, "to");
  // A counting sort keeps the order of a row's entries.
  std::vector<std::int32_t> place(static_cast<std::size_t>(rows_written_) + 1, 0);
  for (std::int64_t e = 0; e < n; ++e) ++place[sum.to[e]];
  std::int32_t start = 0;
  for (std::int64_t row = 0; row < rows_written_; ++row) {
    const std::int32_t count = place[row];
    place[row] = start;
    if (count == 0) continue;
    to_.push_back(static_cast<std::int32_t>(row));
    begin_.push_back(start);
    start += count;
  }
  begin_.push_back(start);
  from_.resize(static_cast<std::size_t>(n));
  if (sum.scale) scale_.resize(static_cast<std::size_t>(n));
  for (std::int64_t e = 0; e < n; ++e) {
    const std::int32_t at = place[sum.to[e]]++;
    from_[at] = sum.from[e];
    if (sum.scale) scale_[at] = sum.scale[e];
  }
}

template <class T>
void RowSumStage<T>::run(const T* input, std::int64_t input_rows, std::int64_t input_stride, T* output,
                         std::int64_t output_rows, std::int64_t output_stride, std::int64_t output_width,
                         std::int64_t n_probes, bool accumulate) const {
  require(n_probes <= input_stride && n_probes <= output_width && output_width <= output_stride,
          "rows are narrower than the probes");
  require(input_rows >= rows_read_, "the input has " + std::to_string(input_rows) + " rows, the sum reads " +
                                        std::to_string(rows_read_));
  require(output_rows >= rows_written_, "the output has " + std::to_string(output_rows) + " rows, the sum writes " +
                                            std::to_string(rows_written_));
  checked_area(input_rows, input_stride, "the input block");
  checked_area(output_rows, output_stride, "the output block");
  const std::int64_t n_outputs = static_cast<std::int64_t>(to_.size());
  const std::int64_t n_entries = static_cast<std::int64_t>(from_.size());
  // A row costs bytes, not operations: count each number as eight.
  const int n_threads = thread_count(n_outputs, (n_entries + n_outputs) * n_probes * 8);

#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t o = 0; o < n_outputs; ++o) {
    T* y = output + to_[o] * output_stride;
    for (std::int32_t e = begin_[o]; e < begin_[o + 1]; ++e) {
      const T* z = input + from_[e] * input_stride;
      const T scale = scale_.empty() ? T(1) : scale_[e];
      if (e == begin_[o] && !accumulate) {
        for (std::int64_t p = 0; p < n_probes; ++p) y[p] = scale * z[p];
      } else {
        for (std::int64_t p = 0; p < n_probes; ++p) y[p] += scale * z[p];
      }
    }
    std::fill(y + n_probes, y + output_width, T(0));
  }
}

template class RowSumStage<float>;
template class RowSumStage<double>;

}  // namespace specxai
