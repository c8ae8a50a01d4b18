#include "cuda/compact.h"

#include "cuda/launch.cuh"

namespace specxai::cuda {
namespace {

constexpr int n_threads = 256, own = 16;  // numbers of a thread
constexpr Index tile = n_threads * own;

SPECXAI_BODY bool lives(std::uint8_t flag) { return flag != 0; }
SPECXAI_BODY bool lives(std::int32_t row) { return row >= 0; }

// How many of a thread's numbers live.
template <class T>
SPECXAI_BODY int live_of(const T* from, Index n, Index start) {
  int count = 0;
  for (int k = 0; k < own; ++k) count += start + k < n && lives(from[start + k]);
  return count;
}

// counts[tile] = the live ones of each tile.
template <class T>
struct Count {
  static constexpr int threads = n_threads, blocks = 4;
  static constexpr const char* name = "compact: count";
  using Shared = Sums<n_threads>;
  const T* from;
  Index n;
  std::int32_t* counts;

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared& shared) const {
    block.phase([&](int thread) { shared.of[0][thread] = live_of(from, n, block.x * tile + thread * own); });
    const int* sums = inclusive_sums(block, shared);
    block.phase([&](int thread) {
      if (thread == n_threads - 1) counts[block.x] = sums[thread];
    });
  }
};

// starts[i] = Σ_{j < i} counts[j], for i from 0 to n; one block.
struct Scan {
  static constexpr int threads = n_threads, blocks = 1;
  static constexpr const char* name = "compact: scan";
  using Shared = Sums<n_threads>;
  std::int32_t* counts;  // becomes starts
  Index n;
  std::int32_t* total;

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared& shared) const {
    Each<int, n_threads> before, mine;
    block.phase([&](int thread) { before[thread] = 0; });
    for (Index start = 0; start < n; start += n_threads) {
      block.phase([&](int thread) {
        mine[thread] = start + thread < n ? counts[start + thread] : 0;
        shared.of[0][thread] = mine[thread];
      });
      const int* sums = inclusive_sums(block, shared);
      block.phase([&](int thread) {
        if (start + thread < n) counts[start + thread] = before[thread] + sums[thread] - mine[thread];
        before[thread] += sums[n_threads - 1];
      });
    }
    block.phase([&](int thread) {
      if (thread == 0) *total = before[thread];
    });
  }
};

template <class T>
struct Write {
  static constexpr int threads = n_threads, blocks = 4;
  static constexpr const char* name = "compact: write";
  using Shared = Sums<n_threads>;
  const T* from;
  Index n, width;
  const std::int32_t* starts;
  const std::int32_t* total;
  Found found;

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared& shared) const {
    Each<int, n_threads> mine;
    block.phase([&](int thread) {
      mine[thread] = live_of(from, n, block.x * tile + thread * own);
      shared.of[0][thread] = mine[thread];
    });
    const int* sums = inclusive_sums(block, shared);
    block.phase([&](int thread) {
      const Index start = block.x * tile + thread * own;
      int rank = starts[block.x] + sums[thread] - mine[thread];
      for (int k = 0; k < own && start + k < n; ++k) {
        const Index i = start + k;
        const T value = from[i];
        if (found.begin && i % width == 0) found.begin[i / width] = rank;
        if (found.rank) found.rank[i] = lives(value) ? rank : -1;
        if (!lives(value)) continue;
        if (found.at) found.at[rank] = static_cast<std::int32_t>(i);
        if (found.row) found.row[rank] = static_cast<std::int32_t>(value);
        if (found.column) found.column[rank] = static_cast<std::int32_t>(i % width);
        ++rank;
      }
      if (block.x == 0 && thread == 0) {
        if (found.begin) found.begin[n / width] = *total;
        if (found.count) *found.count = *total;
      }
    });
  }
};

template <class T>
void run(const T* from, Index n, Index width, const Found& found, std::int32_t* workspace, Place place) {
  const Index tiles = ceil_div(n, tile);
  std::int32_t* const total = workspace + tiles;
  launch(place, tiles, 1, 1, Count<T>{from, n, workspace});
  launch(place, 1, 1, 1, Scan{workspace, tiles, total});
  launch(place, tiles > 0 ? tiles : 1, 1, 1, Write<T>{from, n, width, workspace, total, found});
}

}  // namespace

std::int64_t compact_workspace(std::int64_t n) { return (n + tile - 1) / tile + 1; }

void compact(const std::uint8_t* mask, std::int64_t n, const Found& found, std::int32_t* workspace, Place place) {
  run(mask, n, 1, found, workspace, place);
}

void compact(const std::int32_t* table, std::int64_t n, std::int64_t width, const Found& found,
             std::int32_t* workspace, Place place) {
  run(table, n, width, found, workspace, place);
}

}  // namespace specxai::cuda
