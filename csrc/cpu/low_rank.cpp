#include "cpu/low_rank.h"

#include <algorithm>
#include <limits>
#include <string>

#include "common/checks.h"
#include "common/indices.h"
#include "common/threads.h"
#include "cpu/kernels.h"

namespace specxai {

template <class T>
LowRankStage<T>::LowRankStage(const LowRankTables<T>& t) : rank_(t.rank) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  require(t.rank >= 1 && t.rank <= most_rank,
          "a stage of rank " + std::to_string(t.rank) + "; it is 1 to " + std::to_string(most_rank));
  const std::int64_t units = checked_area(t.n_groups, t.size, "the units");
  require(units < limit, "2^31 units or more");
  rows_read_ = 1 + check_range(t.inside, units, -1, limit, "inside");
  rows_written_ = check_distinct(t.outside, units, limit, "outside");
  read_begin_.push_back(0);
  write_begin_.push_back(0);
  for (std::int64_t g = 0; g < t.n_groups; ++g) {
    for (std::int64_t i = 0; i < t.size; ++i) {
      const std::int64_t unit = g * t.size + i;
      const auto factors = [&](const T* of, std::vector<T>& to) {
        for (std::int64_t r = 0; r < t.rank; ++r) to.push_back(of[(g * t.rank + r) * t.size + i]);
      };
      if (t.inside[unit] >= 0) {
        read_row_.push_back(t.inside[unit]);
        factors(t.right, right_);
      }
      if (t.outside[unit] >= 0) {
        write_row_.push_back(t.outside[unit]);
        from_row_.push_back(t.inside[unit]);
        diagonal_.push_back(t.diagonal[unit]);
        factors(t.left, left_);
        multiply_adds_ += t.inside[unit] >= 0;
      }
    }
    read_begin_.push_back(static_cast<std::int32_t>(read_row_.size()));
    write_begin_.push_back(static_cast<std::int32_t>(write_row_.size()));
  }
  multiply_adds_ += static_cast<std::int64_t>(right_.size() + left_.size());
}

template <class T>
void LowRankStage<T>::run(const Rows<T>& rows, std::int64_t input_rows, std::int64_t output_rows,
                          SimdLevel level) const {
  check_blocks(rows, input_rows, rows_read_, output_rows, rows_written_);
  const std::int64_t n_groups = static_cast<std::int64_t>(read_begin_.size()) - 1;
  const LowRank<T> stage{n_groups, rank_, read_begin_.data(), read_row_.data(), right_.data(), write_begin_.data(),
                         write_row_.data(), from_row_.data(), diagonal_.data(), left_.data()};
  const LowRankKernel<T> kernel = kernels<T>(level).low_rank;
  const std::int64_t n = static_cast<std::int64_t>(read_row_.size() + write_row_.size());
  // A row costs bytes, not operations: count each number as eight.
  const int n_threads = thread_count(n_groups, n * rows.n_probes * 8);

#pragma omp parallel for schedule(static, 1) num_threads(n_threads)
  for (int thread = 0; thread < n_threads; ++thread) {
    kernel(stage, rows, n_groups * thread / n_threads, n_groups * (thread + 1) / n_threads);
  }
}

template class LowRankStage<float>;
template class LowRankStage<double>;

}  // namespace specxai
