#include "cpu/tables.h"

#include <algorithm>
#include <vector>

#include "common/checks.h"
#include "common/indices.h"
#include "common/threads.h"

namespace specxai {

void map_rows(const std::int32_t* rows, std::int64_t n_rows, const std::int32_t* map, std::int64_t n_map,
              std::int32_t* mapped) {
  if (n_map == 0) {
    check_range(rows, n_rows, -1, 0, "rows");
    std::fill_n(mapped, n_rows, -1);
    return;
  }
  const std::int32_t last = static_cast<std::int32_t>(std::min<std::int64_t>(n_map - 1, INT32_MAX));
  std::int32_t low = INT32_MAX, high = INT32_MIN;
#pragma omp parallel for schedule(static) num_threads(thread_count(n_rows, n_rows)) reduction(min : low) reduction(max : high)
  for (std::int64_t i = 0; i < n_rows; ++i) {  // by bits instead of branches, as liveness is random
    const std::int32_t row = rows[i], dead = row >> 31;
    low = std::min(low, row);
    high = std::max(high, row);
    mapped[i] = map[std::min(row & ~dead, last)] | dead;
  }
  if (n_rows > 0) require_range(low, high, -1, n_map, "rows");  // rows may be overwritten by now
}

void count_distinct(const std::int32_t* rows, std::int64_t n_rows, const std::int32_t* begin, std::int64_t n_groups,
                    std::int64_t* counts) {
  require(begin[0] == 0, "begin must start at 0");
  for (std::int64_t g = 0; g < n_groups; ++g) require(begin[g] <= begin[g + 1], "begin must not decrease");
  const int n_threads = thread_count(n_rows, n_rows);
  std::int32_t low = INT32_MAX, high = INT32_MIN;
  std::uint32_t first_live = UINT32_MAX;  // as which -1 is above all others
#pragma omp parallel for schedule(static) num_threads(n_threads) reduction(min : low, first_live) reduction(max : high)
  for (std::int64_t i = 0; i < n_rows; ++i) {
    low = std::min(low, rows[i]);
    high = std::max(high, rows[i]);
    first_live = std::min(first_live, static_cast<std::uint32_t>(rows[i]));
  }
  if (n_rows > 0) require_range(low, high, -1, begin[n_groups], "rows");
  const std::int64_t end = std::int64_t{std::max(high, -1)} + 1, start = std::min<std::int64_t>(first_live, end);
  std::vector<std::uint8_t> seen(static_cast<std::size_t>(end - start) + 1, 0);  // the first for -1
  std::uint8_t* const at = seen.data();
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t i = 0; i < n_rows; ++i) {
    std::uint8_t& mine = at[std::max<std::int64_t>(rows[i] - start + 1, 0)];
#pragma omp atomic write
    mine = 1;
  }
  for (std::int64_t g = 0; g < n_groups; ++g) {
    const auto first = seen.begin() + 1 + (std::clamp<std::int64_t>(begin[g], start, end) - start);
    const auto last = seen.begin() + 1 + (std::clamp<std::int64_t>(begin[g + 1], start, end) - start);
    counts[g] = std::count(first, last, 1);
  }
}

void any_neighbour(const std::uint8_t* cells, std::int64_t n_inside, std::int64_t groups,
                   const std::int32_t* neighbours, std::int64_t n_outside, std::int64_t taps, std::uint8_t* seen) {
  check_range(neighbours, n_outside * taps, -1, n_inside, "neighbours");
  std::fill_n(seen, n_outside * groups, std::uint8_t{0});
#pragma omp parallel for schedule(static) num_threads(thread_count(n_outside, n_outside * taps * groups))
  for (std::int64_t s = 0; s < n_outside; ++s) {
    std::uint8_t* to = seen + s * groups;
    for (std::int64_t t = 0; t < taps; ++t) {
      const std::int32_t near = neighbours[s * taps + t];
      if (near < 0) continue;
      const std::uint8_t* from = cells + near * groups;
      for (std::int64_t g = 0; g < groups; ++g) to[g] |= from[g];
    }
  }
}

}  // namespace specxai
