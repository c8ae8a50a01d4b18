#include "cuda/gram.h"

#include "cuda/launch.cuh"

namespace specxai::cuda {
namespace {

constexpr int tile = 64;          // columns of either side
constexpr Index most_parts = 256;
constexpr Index least_rows = 64;  // of a part

Index parts_of(Index n_rows) {
  const Index parts = ceil_div(n_rows, least_rows);
  return parts < 1 ? 1 : parts < most_parts ? parts : most_parts;
}

// Is it one block with itself?  Two that begin alike may have rows of other lengths.
template <class T>
SPECXAI_ANYWHERE bool mirrored(const T* left, Index n_left, const T* right, Index n_right) {
  return left == right && n_left == n_right;
}

// The products of one part of the rows with a tile of columns on either side.  The next rows are on their way to
// registers while these are multiplied.
template <class T>
struct Part {
  static constexpr int threads = 256, blocks = 2;
  static constexpr const char* name = "gram: part";
  static constexpr int chunk = 16;                  // rows in shared memory
  static constexpr int own = 4;                     // a thread's columns of either side
  static constexpr int across = tile / own;
  static constexpr int copies = chunk * tile / threads;
  static_assert(across * across == threads);

  struct Shared {
    double left[2][chunk][tile], right[2][chunk][tile];
  };

  struct Copied {
    T left[copies], right[copies];
  };

  const T* left;
  const T* right;
  Index n_left, n_right, n_rows, parts;
  double* sums;  // (parts, n_left, n_right)

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared& shared) const {
    const bool symmetric = mirrored(left, n_left, right, n_right);
    if (symmetric && block.y > block.z) return;  // the mirror of another one
    const Index begin = n_rows * block.x / parts, end = n_rows * (block.x + 1) / parts;
    Each<Copied, threads> copied;
    Each<double[own][own], threads> total;
    block.phase([&](int thread) {
      SPECXAI_UNROLL
      for (int k = 0; k < own * own; ++k) total[thread][k / own][k % own] = 0;
      fetch(block, thread, begin, end, copied[thread]);
      put(shared, thread, 0, copied[thread]);
    });
    int now = 0;
    for (Index row = begin; row < end; row += chunk, now = 1 - now) {
      block.phase([&](int thread) {
        fetch(block, thread, row + chunk, end, copied[thread]);
        multiply(shared, thread, now, total[thread]);
        put(shared, thread, 1 - now, copied[thread]);
      });
    }
    block.phase([&](int thread) {
      SPECXAI_UNROLL
      for (int k = 0; k < own * own; ++k) {
        const Index i = block.y * tile + thread / across * own + k / own;
        const Index j = block.z * tile + thread % across * own + k % own;
        if (i < n_left && j < n_right) sums[(block.x * n_left + i) * n_right + j] = total[thread][k / own][k % own];
      }
    });
  }

  template <class B>
  SPECXAI_BODY void fetch(const B& block, int thread, Index row, Index end, Copied& copied) const {
    SPECXAI_UNROLL
    for (int k = 0; k < copies; ++k) {
      const int at = k * threads + thread;
      const Index i = block.y * tile + at % tile, j = block.z * tile + at % tile, r = row + at / tile;
      copied.left[k] = r < end && i < n_left ? left[r * n_left + i] : T(0);
      copied.right[k] = r < end && j < n_right ? right[r * n_right + j] : T(0);
    }
  }

  SPECXAI_BODY void put(Shared& shared, int thread, int slot, const Copied& copied) const {
    SPECXAI_UNROLL
    for (int k = 0; k < copies; ++k) {
      const int at = k * threads + thread;
      shared.left[slot][at / tile][at % tile] = copied.left[k];
      shared.right[slot][at / tile][at % tile] = copied.right[k];
    }
  }

  SPECXAI_BODY void multiply(const Shared& shared, int thread, int slot, double (&total)[own][own]) const {
    SPECXAI_UNROLL
    for (int r = 0; r < chunk; ++r) {
      const double* a = shared.left[slot][r] + thread / across * own;
      const double* b = shared.right[slot][r] + thread % across * own;
      SPECXAI_UNROLL
      for (int k = 0; k < own * own; ++k) total[k / own][k % own] += a[k / own] * b[k % own];
    }
  }
};

// Adds the parts in order; below the diagonal of a symmetric product are the numbers above it.
struct Fold {
  static constexpr int threads = 128, blocks = 4;
  static constexpr const char* name = "gram: fold";
  using Shared = Nothing;
  const double* sums;
  Index parts, n_left, n_right;
  bool symmetric;
  double* output;

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared&) const {
    block.phase([&](int thread) {
      const Index at = block.x * threads + thread;
      if (at >= n_left * n_right) return;
      Index i = at / n_right, j = at % n_right;
      if (symmetric && i > j) {
        const Index upper = i;
        i = j, j = upper;
      }
      double sum = 0;
      for (Index part = 0; part < parts; ++part) sum += sums[(part * n_left + i) * n_right + j];
      output[at] = sum;
    });
  }
};

// A thread has a row, and takes its columns eight at a time.
template <class T>
struct Solve {
  static constexpr int threads = sizeof(T) == 4 ? 64 : 32, blocks = 4;
  static constexpr const char* name = "solve_triangular";
  static constexpr int own = 8;

  struct Shared {
    T rows[threads][most_solved + 1];  // one more, so that threads read different banks
  };

  const T* from;
  const double* R;
  Index n_rows;
  int width;
  T* output;

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared& shared) const {
    const Index first = block.x * threads;
    const int rows = n_rows - first < threads ? static_cast<int>(n_rows - first) : threads;
    block.phase([&](int thread) {
      for (int at = thread; at < rows * width; at += threads) {
        shared.rows[at / width][at % width] = from[first * width + at];
      }
    });
    block.phase([&](int thread) {
      if (thread < rows) substitute(shared.rows[thread]);
    });
    block.phase([&](int thread) {
      for (int at = thread; at < rows * width; at += threads) {
        output[first * width + at] = shared.rows[at / width][at % width];
      }
    });
  }

  // q_j = (x_j - sum_{i < j} q_i R_ij) / R_jj, in place.
  SPECXAI_BODY void substitute(T* row) const {
    for (int start = 0; start < width; start += own) {
      double left[own];
      SPECXAI_UNROLL
      for (int k = 0; k < own; ++k) left[k] = start + k < width ? row[start + k] : 0.0;
      for (int i = 0; i < start; ++i) {
        const double q = row[i];
        SPECXAI_UNROLL
        for (int k = 0; k < own; ++k) {
          if (start + k < width) left[k] -= q * R[i * width + start + k];
        }
      }
      SPECXAI_UNROLL
      for (int k = 0; k < own; ++k) {
        if (start + k >= width) break;
        const T q = static_cast<T>(left[k] / R[(start + k) * width + start + k]);
        row[start + k] = q;
        SPECXAI_UNROLL
        for (int l = k + 1; l < own; ++l) {
          if (start + l < width) left[l] -= static_cast<double>(q) * R[(start + k) * width + start + l];
        }
      }
    }
  }
};

}  // namespace

std::int64_t gram_workspace(std::int64_t n_left, std::int64_t n_right, std::int64_t n_rows) {
  return parts_of(n_rows) * n_left * n_right;
}

template <class T>
void gram(const T* left, std::int64_t n_left, const T* right, std::int64_t n_right, std::int64_t n_rows,
          double* output, double* workspace, Place place) {
  const Index parts = parts_of(n_rows);
  launch(place, parts, ceil_div(n_left, tile), ceil_div(n_right, tile),
         Part<T>{left, right, n_left, n_right, n_rows, parts, workspace});
  launch(place, ceil_div(n_left * n_right, Fold::threads), 1, 1,
         Fold{workspace, parts, n_left, n_right, mirrored(left, n_left, right, n_right), output});
}

template <class T>
void solve_triangular(const T* block, const double* R, std::int64_t n_rows, std::int64_t width, T* output,
                      Place place) {
  if (width == 0) return;
  launch(place, ceil_div(n_rows, Solve<T>::threads), 1, 1,
         Solve<T>{block, R, n_rows, static_cast<int>(width), output});
}

#define SPECXAI_GRAM(T)                                                                                        \
  template void gram<T>(const T*, std::int64_t, const T*, std::int64_t, std::int64_t, double*, double*, Place); \
  template void solve_triangular<T>(const T*, const double*, std::int64_t, std::int64_t, T*, Place);
SPECXAI_GRAM(float)
SPECXAI_GRAM(double)
#undef SPECXAI_GRAM

}  // namespace specxai::cuda
