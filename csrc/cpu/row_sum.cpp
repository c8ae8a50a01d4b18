#include "cpu/row_sum.h"

#include <algorithm>
#include <limits>
#include <string>

#include "common/checks.h"
#include "common/indices.h"
#include "common/threads.h"
#include "cpu/kernels.h"

namespace specxai {

template <class T>
RowSumStage<T>::RowSumStage(const RowSum<T>& sum) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  const std::int64_t n = sum.n_entries;
  require(n < limit, "a sum of 2^31 rows or more");
  rows_read_ = 1 + check_range(sum.from, n, 0, limit, "from");
  rows_written_ = 1 + std::max(check_range(sum.to, n, 0, limit, "to"),
                               check_range(sum.empty, sum.n_empty, 0, limit, "empty"));
  std::vector<std::int32_t> count(static_cast<std::size_t>(rows_written_), 0);
  std::vector<std::uint8_t> written(count.size(), 0);
  for (std::int64_t e = 0; e < n; ++e) ++count[sum.to[e]];
  for (std::int64_t i = 0; i < sum.n_empty; ++i) written[sum.empty[i]] = 1;
  for (std::int64_t row = 0; row < rows_written_; ++row) {
    if (count[row] > 0 || written[row]) to_.push_back(static_cast<std::int32_t>(row));
  }
  // A counting sort keeps the order of a row's entries.
  begin_.push_back(0);
  for (const std::int32_t row : to_) {
    begin_.push_back(begin_.back() + count[row]);
    count[row] = begin_[begin_.size() - 2];
  }
  from_.resize(static_cast<std::size_t>(n));
  if (sum.scale) scale_.resize(static_cast<std::size_t>(n));
  for (std::int64_t e = 0; e < n; ++e) {
    const std::int32_t at = count[sum.to[e]]++;
    from_[at] = sum.from[e];
    if (sum.scale) scale_[at] = sum.scale[e];
  }
}

template <class T>
RowSumStage<T>::RowSumStage(const Depthwise<T>& t) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  const std::int64_t inputs = checked_area(t.n_inside, t.channels, "the input");
  const std::int64_t outputs = checked_area(t.n_outside, t.channels, "the output");
  require(checked_area(outputs, t.taps, "the entries") < limit && inputs < limit && outputs < limit,
          "a sum of 2^31 entries or more");
  rows_read_ = 1 + check_range(t.inside, inputs, -1, limit, "inside");
  rows_written_ = check_distinct(t.outside, outputs, limit, "outside");
  check_range(t.neighbours, t.n_outside * t.taps, -1, t.n_inside, "neighbours");

  // What a position has before it: live outputs, and their entries.
  std::vector<std::int32_t> first(static_cast<std::size_t>(t.n_outside) + 1, 0), entry(first.size(), 0);
  const int n_threads = thread_count(t.n_outside, outputs * t.taps);
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t s = 0; s < t.n_outside; ++s) {
    const std::int32_t* to = t.outside + s * t.channels;
    std::int32_t live = 0, met = 0;
    for (std::int64_t c = 0; c < t.channels; ++c) live += to[c] >= 0;
    for (std::int64_t tap = 0; tap < t.taps; ++tap) {
      const std::int32_t near = t.neighbours[s * t.taps + tap];
      if (near < 0) continue;
      const std::int32_t* from = t.inside + near * t.channels;
      for (std::int64_t c = 0; c < t.channels; ++c) met += (from[c] >= 0) & (to[c] >= 0);
    }
    first[s + 1] = live;
    entry[s + 1] = met;
  }
  for (std::int64_t s = 0; s < t.n_outside; ++s) {
    first[s + 1] += first[s];
    entry[s + 1] += entry[s];
  }
  to_.resize(static_cast<std::size_t>(first.back()));
  begin_.resize(to_.size() + 1);
  begin_.back() = entry.back();
  from_.resize(static_cast<std::size_t>(entry.back()));
  scale_.resize(from_.size());
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t s = 0; s < t.n_outside; ++s) {
    const std::int32_t* near = t.neighbours + s * t.taps;
    std::int32_t output = first[s], at = entry[s];
    for (std::int64_t c = 0; c < t.channels; ++c) {
      const std::int32_t row = t.outside[s * t.channels + c];
      if (row < 0) continue;
      to_[output] = row;
      begin_[output++] = at;
      for (std::int64_t tap = 0; tap < t.taps; ++tap) {
        const std::int32_t from = near[tap] < 0 ? -1 : t.inside[near[tap] * t.channels + c];
        if (from < 0) continue;
        from_[at] = from;
        scale_[at++] = t.weight[c * t.taps + tap];
      }
    }
  }
}

template <class T>
void check_blocks(const Rows<T>& rows, std::int64_t input_rows, std::int64_t rows_read, std::int64_t output_rows,
                  std::int64_t rows_written) {
  require(rows.n_probes <= rows.input_stride && rows.n_probes <= rows.output_width &&
              rows.output_width <= rows.output_stride,
          "rows are narrower than the probes");
  require(input_rows >= rows_read, "the input has " + std::to_string(input_rows) + " rows, the stage reads " +
                                       std::to_string(rows_read));
  require(output_rows >= rows_written, "the output has " + std::to_string(output_rows) + " rows, the stage writes " +
                                           std::to_string(rows_written));
  checked_area(input_rows, rows.input_stride, "the input block");
  checked_area(output_rows, rows.output_stride, "the output block");
}

template <class T>
void RowSumStage<T>::run(const Rows<T>& rows, std::int64_t input_rows, std::int64_t output_rows,
                         SimdLevel level) const {
  check_blocks(rows, input_rows, rows_read_, output_rows, rows_written_);
  const std::int64_t n_outputs = static_cast<std::int64_t>(to_.size()), n = static_cast<std::int64_t>(from_.size());
  const SortedSum<T> sum{n_outputs, n, begin_.data(), to_.data(), from_.data(),
                         scale_.empty() ? nullptr : scale_.data()};
  const RowSumKernel<T> kernel = kernels<T>(level).row_sum;
  // A row costs bytes, not operations: count each number as eight.
  const int n_threads = thread_count(n_outputs, (n + n_outputs) * rows.n_probes * 8);
  const auto cut = [&](int thread) {  // equal numbers of entries; neighbouring rows read the same inputs
    if (thread == n_threads) return n_outputs;
    return std::lower_bound(begin_.begin(), begin_.end() - 1, n * thread / n_threads) - begin_.begin();
  };

#pragma omp parallel for schedule(static, 1) num_threads(n_threads)
  for (int thread = 0; thread < n_threads; ++thread) kernel(sum, rows, cut(thread), cut(thread + 1));
}

template void check_blocks(const Rows<float>&, std::int64_t, std::int64_t, std::int64_t, std::int64_t);
template void check_blocks(const Rows<double>&, std::int64_t, std::int64_t, std::int64_t, std::int64_t);
template class RowSumStage<float>;
template class RowSumStage<double>;

}  // namespace specxai
