#include "cuda/span.h"

#include "cuda/launch.cuh"

namespace specxai::cuda {
namespace {

constexpr int chunk = 64;         // rows of the block at once
constexpr Index most_parts = 256;

Index parts_of(Index n) {
  const Index parts = ceil_div(n, chunk);
  return parts < most_parts ? parts : most_parts;
}

// A part of the block's rows, a chunk at a time: the basis is subtracted from it, tile by tile, and what is left
// multiplied with the same tiles, which are in the cache by then.
template <class T, int columns>
struct Pass {
  static constexpr int threads = 256, blocks = 3;
  static constexpr const char* name = "span";
  static constexpr int tile = 32;  // basis vectors at once
  static constexpr int own = 4;    // columns of a coefficient's thread
  static constexpr int groups = columns / own, splits = threads / tile / groups;  // of the chunk's rows
  static constexpr int lasting = chunk * columns / threads;                       // numbers of the block a thread has

  struct Shared {
    double left[chunk][columns];  // of the block
    T basis[tile][chunk + 1];     // one more, so that threads read different banks
    double sums[splits][tile][columns];  // of coefficients; the first holds those of `before` while they are in use
  };

  const T* basis;
  Index n_basis;
  const double* before;
  const T* from;
  int width;
  Index n, parts;
  T* output;
  double* sums;  // (parts, n_basis, width), or null

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared& shared) const {
    const Index chunks = ceil_div(n, chunk), begin = chunks * block.x / parts, end = chunks * (block.x + 1) / parts;
    for (Index c = begin; c < end; ++c) {
      take(block, shared, c * chunk);
      if (before != nullptr) subtract(block, shared, c * chunk);
      if (sums != nullptr) project(block, shared, c * chunk, c == begin);
    }
  }

  template <class B>
  SPECXAI_BODY void take(B& block, Shared& shared, Index start) const {
    block.phase([&](int thread) {
      for (int at = thread; at < chunk * columns; at += threads) {
        const Index row = start + at / columns;
        const int p = at % columns;
        shared.left[at / columns][p] = row < n && p < width ? from[row * width + p] : T(0);
      }
    });
  }

  SPECXAI_BODY void read_tile(Shared& shared, int thread, Index first, Index start) const {
    for (int at = thread; at < tile * chunk; at += threads) {
      const Index q = first + at / chunk, row = start + at % chunk;
      shared.basis[at / chunk][at % chunk] = q < n_basis && row < n ? basis[q * n + row] : T(0);
    }
  }

  template <class B>
  SPECXAI_BODY void subtract(B& block, Shared& shared, Index start) const {
    Each<double[lasting], threads> total;
    block.phase([&](int thread) {
      SPECXAI_UNROLL
      for (int k = 0; k < lasting; ++k) total[thread][k] = 0;
    });
    for (Index first = 0; first < n_basis; first += tile) {
      block.phase([&](int thread) {
        read_tile(shared, thread, first, start);
        for (int at = thread; at < tile * columns; at += threads) {
          const Index q = first + at / columns;
          const int p = at % columns;
          shared.sums[0][at / columns][p] = q < n_basis && p < width ? before[q * width + p] : 0.0;
        }
      });
      block.phase([&](int thread) {
        const int row = thread % chunk, p0 = thread / chunk * lasting;
        for (int q = 0; q < tile; ++q) {
          const double b = shared.basis[q][row];
          SPECXAI_UNROLL
          for (int k = 0; k < lasting; ++k) total[thread][k] += b * shared.sums[0][q][p0 + k];
        }
      });
    }
    block.phase([&](int thread) {
      const int row = thread % chunk, p0 = thread / chunk * lasting;
      SPECXAI_UNROLL
      for (int k = 0; k < lasting; ++k) {
        const T value = static_cast<T>(shared.left[row][p0 + k] - total[thread][k]);
        shared.left[row][p0 + k] = value;  // what is stored is what is multiplied
        if (start + row < n && p0 + k < width) output[(start + row) * width + p0 + k] = value;
      }
    });
  }

  template <class B>
  SPECXAI_BODY void project(B& block, Shared& shared, Index start, bool fresh) const {
    for (Index first = 0; first < n_basis; first += tile) {
      block.phase([&](int thread) { read_tile(shared, thread, first, start); });
      block.phase([&](int thread) {
        const int q = thread % tile, p0 = thread / tile % groups * own, split = thread / tile / groups;
        double total[own] = {};
        for (int row = split * (chunk / splits); row < (split + 1) * (chunk / splits); ++row) {
          const double b = shared.basis[q][row];
          SPECXAI_UNROLL
          for (int k = 0; k < own; ++k) total[k] += b * shared.left[row][p0 + k];
        }
        SPECXAI_UNROLL
        for (int k = 0; k < own; ++k) shared.sums[split][q][p0 + k] = total[k];
      });
      block.phase([&](int thread) {
        for (int at = thread; at < tile * columns; at += threads) {
          const Index q = first + at / columns;
          const int p = at % columns;
          if (q >= n_basis || p >= width) continue;
          double sum = 0;
          for (int split = 0; split < splits; ++split) sum += shared.sums[split][at / columns][p];
          double& kept = sums[(block.x * n_basis + q) * width + p];
          kept = fresh ? sum : kept + sum;
        }
      });
    }
  }
};

struct Fold {
  static constexpr int threads = 128, blocks = 4;
  static constexpr const char* name = "span: fold";
  using Shared = Nothing;
  const double* sums;
  Index parts, n;
  double* output;

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared&) const {
    block.phase([&](int thread) {
      const Index at = block.x * threads + thread;
      if (at >= n) return;
      double sum = 0;
      for (Index part = 0; part < parts; ++part) sum += sums[part * n + at];
      output[at] = sum;
    });
  }
};

template <class T, int columns>
void pass(const T* basis, Index n_basis, const double* before, const T* block, Index width, Index n, T* output,
          double* sums, Place place) {
  const Index parts = parts_of(n);
  launch(place, parts, 1, 1, Pass<T, columns>{basis, n_basis, before, block, static_cast<int>(width), n, parts, output,
                                              sums});
}

}  // namespace

std::int64_t span_workspace(std::int64_t n_basis, std::int64_t width, std::int64_t n) {
  return parts_of(n) * n_basis * width;
}

template <class T>
void span(const T* basis, std::int64_t n_basis, const double* before, const T* block, std::int64_t width,
          std::int64_t n, T* output, double* coefficients, double* workspace, Place place) {
  if (width == 0) return;
  const auto go = width <= 4 ? pass<T, 4> : width <= 8 ? pass<T, 8> : width <= 16 ? pass<T, 16> : pass<T, 32>;
  go(basis, n_basis, before, block, width, n, output, coefficients == nullptr ? nullptr : workspace, place);
  if (coefficients == nullptr) return;
  const Index sums = n_basis * width;
  launch(place, ceil_div(sums, Fold::threads), 1, 1, Fold{workspace, parts_of(n), sums, coefficients});
}

template void span<float>(const float*, std::int64_t, const double*, const float*, std::int64_t, std::int64_t, float*,
                          double*, double*, Place);
template void span<double>(const double*, std::int64_t, const double*, const double*, std::int64_t, std::int64_t,
                           double*, double*, double*, Place);

}  // namespace specxai::cuda
