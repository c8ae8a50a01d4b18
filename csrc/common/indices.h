// Checks of index arrays, made once when a stage is built: no index out of range reaches a kernel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "common/checks.h"

namespace specxai {

// Offsets of consecutive groups: from 0 to `total`, never decreasing.
inline void check_offsets(const std::int32_t* begin, std::int64_t n_groups, std::int64_t total, const char* name) {
  require(begin[0] == 0 && begin[n_groups] == total,
          std::string(name) + " must start at 0 and end at " + std::to_string(total));
  for (std::int64_t g = 0; g < n_groups; ++g) {
    require(begin[g] <= begin[g + 1], std::string(name) + " must not decrease");
  }
}

// The largest value, -1 for none; all must lie in [0, size).
inline std::int64_t check_range(const std::int32_t* values, std::int64_t count, std::int64_t size, const char* name) {
  std::int32_t low = count ? values[0] : 0, high = count ? values[0] : -1;
  for (std::int64_t i = 0; i < count; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  require(low >= 0 && high < size, std::string(name) + " spans " + std::to_string(low) + " to " +
                                       std::to_string(high) + ", but must lie in 0 to " + std::to_string(size - 1));
  return high;
}

// Rows that threads write without a lock: no two may be the same.  Returns one more than the largest.
inline std::int64_t check_distinct(const std::int32_t* rows, std::int64_t count, std::int64_t size, const char* name) {
  const std::int64_t used = 1 + check_range(rows, count, size, name);
  std::vector<bool> taken(static_cast<std::size_t>(used), false);
  for (std::int64_t i = 0; i < count; ++i) {
    require(!taken[rows[i]], std::string(name) + " holds row " + std::to_string(rows[i]) + " twice");
    taken[rows[i]] = true;
  }
  return used;
}

}  // namespace specxai
