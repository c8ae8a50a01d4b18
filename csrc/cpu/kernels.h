// All kernels of one instruction set; where a level becomes one of them.
#pragma once

#include "common/simd_level.h"
#include "cpu/gather_gemm.h"
#include "cpu/gram.h"
#include "cpu/low_rank.h"
#include "cpu/narrow_gemm.h"
#include "cpu/peak.h"
#include "cpu/row_sum.h"
#include "cpu/span.h"

namespace specxai {

template <class T>
struct Kernels {
  std::int64_t vector_bytes;
  GatherGemmKernel<T> gather_gemm;
  NarrowKernel<T> narrow_by_outputs, narrow_by_inputs;  // null in `scalar`, whose gather_gemm takes rows of any width
  RowSumKernel<T> row_sum;
  LowRankKernel<T> low_rank;
  GramKernel<T> gram;
  CoefficientsKernel<T> coefficients;
  SubtractKernel<T> subtract;
  MultiplyAdd<T> multiply_add;
};

// The kernels of a supported level.
template <class T>
const Kernels<T>& kernels(SimdLevel level);

namespace scalar {
extern const Kernels<float> f32;
extern const Kernels<double> f64;
}  // namespace scalar
namespace avx2 {
extern const Kernels<float> f32;
extern const Kernels<double> f64;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> f32;
extern const Kernels<double> f64;
}  // namespace avx512

}  // namespace specxai
