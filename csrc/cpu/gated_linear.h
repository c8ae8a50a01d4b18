// One dense linear stage of a gated chain, on a block of probes and restricted to live units.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/simd_level.h"

namespace specxai {

// With W' = diag(scale) W[rows, cols], the live part of a row-major weight matrix W with its gates:
//
//   forward    output (n_rows, n_probes) = W'  input (n_cols, n_probes)
//   transpose  output (n_cols, n_probes) = W'^T input (n_rows, n_probes)
//
// so the same arguments give a map and its adjoint.  All arrays are contiguous; a null rows or cols means all of
// them in order, a null scale means ones.  A dead unit is a row that does not exist.
template <class T>
struct GatedLinear {
  const T* weight;
  std::int64_t weight_stride;  // elements from one row of W to the next
  const std::int64_t* rows;
  std::int64_t n_rows;
  const std::int64_t* cols;
  std::int64_t n_cols;
  const T* scale;  // one factor per live row
  const T* input;
  T* output;
  std::int64_t n_probes;
  bool transpose;
};

// Runs the stage at one SIMD level, over OpenMP threads.  Each output is one chain of sums in a fixed order, whatever
// the number of threads, the position of its row and the other live rows: equal arguments give equal bits.
template <class T>
void gated_linear(const GatedLinear<T>& stage, SimdLevel level);

// One ISA's implementation.  `run` computes output rows [begin, end), begin a multiple of `panel`, in the caller's
// scratch memory of `workspace` elements, aligned to 64 bytes.
template <class T>
struct GatedLinearKernel {
  std::int64_t panel;
  std::size_t workspace;
  void (*run)(const GatedLinear<T>& stage, std::int64_t begin, std::int64_t end, T* workspace);
};

namespace scalar {
extern const GatedLinearKernel<float> gated_linear_f32;
extern const GatedLinearKernel<double> gated_linear_f64;
}  // namespace scalar
namespace avx2 {
extern const GatedLinearKernel<float> gated_linear_f32;
extern const GatedLinearKernel<double> gated_linear_f64;
}  // namespace avx2
namespace avx512 {
extern const GatedLinearKernel<float> gated_linear_f32;
extern const GatedLinearKernel<double> gated_linear_f64;
}  // namespace avx512

}  // namespace specxai
