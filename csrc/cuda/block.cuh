// How a kernel's body runs: by a block of threads on a GPU, or thread by thread on the CPU (SPECXAI_CUDA_EMULATED), so
// that one text of index arithmetic is compiled by nvcc and tested where there is no GPU.
//
// A body is a struct of arguments with
//
//   static constexpr int threads, blocks;  // of a block; that a multiprocessor is to hold
//   static constexpr const char* name; struct Shared;
//   template <class Block> void operator()(Block& block, Shared& shared) const;
//
// and goes from barrier to barrier by phases: block.phase([&](int thread) { ... }).  What a thread keeps from one to
// the next is an Each<T, threads>, what threads exchange is in `shared`.  Between phases all threads agree.
#pragma once

#include <cstdint>

#ifdef SPECXAI_CUDA_EMULATED
#define SPECXAI_BODY inline
#define SPECXAI_ANYWHERE inline
#define SPECXAI_UNROLL
#else
#define SPECXAI_BODY __device__ __forceinline__
#define SPECXAI_ANYWHERE __host__ __device__ __forceinline__
#define SPECXAI_UNROLL _Pragma("unroll")
#endif

namespace specxai::cuda {

struct Nothing {};  // the shared memory of a kernel that has none

using Index = std::int64_t;

#ifdef SPECXAI_CUDA_EMULATED

// Blocks and threads in reverse order: bits that then differ tell of a barrier that is missing.
inline bool& backward() {
  static bool value = false;
  return value;
}

template <int n_threads>
struct Block {
  Index x;
  int y, z;

  template <class Phase>
  void phase(const Phase& run) const {
    for (int i = 0; i < n_threads; ++i) run(backward() ? n_threads - 1 - i : i);
  }
};

template <class T, int n_threads>
struct Each {
  T values[n_threads];
  T& operator[](int thread) { return values[thread]; }
};

#else

template <int n_threads>
struct Block {
  Index x;
  int y, z;

  template <class Phase>
  __device__ __forceinline__ void phase(const Phase& run) const {
    run(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
};

template <class T, int n_threads>
struct Each {
  T value;
  __device__ __forceinline__ T& operator[](int) { return value; }
};

#endif

constexpr SPECXAI_ANYWHERE Index ceil_div(Index n, Index size) { return (n + size - 1) / size; }

// Sixteen bytes that are read or written at once.
template <class T>
struct alignas(16) Line {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

// Inclusive sums over a block's threads.
template <int n_threads>
struct Sums {
  int of[2][n_threads];
};

// Brings sums.of[0][thread], which all have written before a barrier, to their inclusive sums; returns where those lie.
template <int n_threads>
SPECXAI_BODY const int* inclusive_sums(const Block<n_threads>& block, Sums<n_threads>& sums) {
  int now = 0;
  for (int step = 1; step < n_threads; step *= 2, now = 1 - now) {
    block.phase([&](int thread) {
      sums.of[1 - now][thread] = sums.of[now][thread] + (thread >= step ? sums.of[now][thread - step] : 0);
    });
  }
  return sums.of[now];
}

}  // namespace specxai::cuda
