// Checks of index arrays, made once when a stage is built: no index out of range reaches a kernel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "common/checks.h"
#include "common/threads.h"

namespace specxai {

// Values from `low` to `high` must lie in [from, to).
inline void require_range(std::int64_t low, std::int64_t high, std::int64_t from, std::int64_t to, const char* name) {
  require(low >= from && high < to, std::string(name) + " spans " + std::to_string(low) + " to " +
                                        std::to_string(high) + ", but must lie in " + std::to_string(from) + " to " +
                                        std::to_string(to - 1));
}

// The largest value, `from` - 1 for none; all must lie in [from, to).
inline std::int64_t check_range(const std::int32_t* values, std::int64_t count, std::int64_t from, std::int64_t to,
                                const char* name) {
  if (count == 0) return from - 1;
  std::int32_t low = values[0], high = values[0];
#pragma omp parallel for schedule(static) num_threads(thread_count(count, count)) reduction(min : low) reduction(max : high)
  for (std::int64_t i = 1; i < count; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  require_range(low, high, from, to, name);
  return high;
}

// Rows that threads write without a lock: no two may be the same, -1 stands for none.  Returns one more than the
// largest.
inline std::int64_t check_distinct(const std::int32_t* rows, std::int64_t count, std::int64_t size, const char* name) {
  const std::int64_t used = 1 + check_range(rows, count, -1, size, name);
  std::vector<std::uint8_t> taken(static_cast<std::size_t>(used) + 1, 0);  // by row + 1: dead ones share the first
  for (std::int64_t i = 0; i < count; ++i) {
    if (taken[rows[i] + 1] && rows[i] >= 0) {
      require(false, std::string(name) + " holds row " + std::to_string(rows[i]) + " twice");
    }
    taken[rows[i] + 1] = 1;
  }
  return used;
}

}  // namespace specxai
