#include "cpu/row_sum.h"

#include <algorithm>
#include <limits>
#include <string>

#include "common/checks.h"
#include "common/indices.h"
#include "common/threads.h"

namespace specxai {

template <class T>
RowSumStage<T>::RowSumStage(const RowSum<T>& sum) : sum_(sum) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  require(sum.n_outputs < limit && sum.n_entries < limit, "a sum of more than 2^31 rows");
  check_offsets(sum.begin, sum.n_outputs, sum.n_entries, "begin");
  rows_read_ = 1 + check_range(sum.in_row, sum.n_entries, limit, "in_row");
  rows_written_ = check_distinct(sum.out_row, sum.n_outputs, limit, "out_row");
}

template <class T>
void RowSumStage<T>::run(const T* input, std::int64_t input_rows, std::int64_t input_stride, T* output,
                         std::int64_t output_rows, std::int64_t output_stride, std::int64_t n_probes,
                         bool accumulate) const {
  require(n_probes <= input_stride && n_probes <= output_stride, "rows are narrower than the probes");
  require(input_rows >= rows_read_, "the input has " + std::to_string(input_rows) + " rows, the sum reads " +
                                        std::to_string(rows_read_));
  require(output_rows >= rows_written_, "the output has " + std::to_string(output_rows) + " rows, the sum writes " +
                                            std::to_string(rows_written_));
  checked_area(input_rows, input_stride, "the input block");
  checked_area(output_rows, output_stride, "the output block");
  const RowSum<T>& s = sum_;
  // A row costs bytes, not operations: count each number as eight.
  const int n_threads = thread_count(s.n_outputs, (s.n_entries + s.n_outputs) * n_probes * 8);

#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t o = 0; o < s.n_outputs; ++o) {
    T* y = output + s.out_row[o] * output_stride;
    const std::int32_t begin = s.begin[o], end = s.begin[o + 1];
    for (std::int32_t e = begin; e < end; ++e) {
      const T* z = input + s.in_row[e] * input_stride;
      const T scale = s.scale ? s.scale[e] : T(1);
      if (e == begin && !accumulate) {
        for (std::int64_t p = 0; p < n_probes; ++p) y[p] = scale * z[p];
      } else {
        for (std::int64_t p = 0; p < n_probes; ++p) y[p] += scale * z[p];
      }
    }
    if (begin == end && !accumulate) std::fill_n(y, n_probes, T(0));
    std::fill(y + n_probes, y + output_stride, T(0));
  }
}

template class RowSumStage<float>;
template class RowSumStage<double>;

}  // namespace specxai
