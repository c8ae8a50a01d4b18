// Gather-GEMM on rows of 1, 2, 4 or 8 probes: too few to be the lanes of a vector, so the lanes are units.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/gather_gemm.h"

namespace specxai {

inline bool is_narrow(std::int64_t stride) { return stride == 1 || stride == 2 || stride == 4 || stride == 8; }

// One vector of weights serves all probes of a row.  It lies
//
//   by outputs: along a panel of outputs, whose dead ones are computed in vain; inputs are the live ones, one by one;
//   by inputs:  along the inputs of one tap, whose dead ones count zero times; outputs are the live ones, one by one.
//
// A stage takes the form with fewer vectors.  After a ReLU half of the units are alive, after max-pooling nearly all,
// and before it a quarter: mostly one side is nearly dense.
//
// By inputs: weight(t, c, o) = weight[(o * taps + t) * depth + c], and the inputs of cell i, zero where they are dead,
// are spread[i * stride * depth ...], vector by vector and in each probe by probe; depth is padded to whole panels.
template <class T>
struct ByInputs {
  const T* weight;
  const T* spread;
  std::int64_t depth;
};

template <class T>
using ByOutputsKernel = void (*)(const GatherGemm<T>& stage, const Blocks<T>& blocks, const Task& task);
template <class T>
using ByInputsKernel = void (*)(const GatherGemm<T>& stage, const ByInputs<T>& by, const Blocks<T>& blocks,
                                const Task& task);

// The narrow runs of one stage, which must outlive it.
template <class T>
class NarrowGemm {
 public:
  explicit NarrowGemm(const GatherGemm<T>& stage);

  // `work`: multiply-adds of the run.  `lean`: by outputs, as by inputs needs weights of its own, made by the first
  // such run and kept.
  void run(const Blocks<T>& blocks, std::int64_t work, bool lean, SimdLevel level) const;

 private:
  void arrange() const;
  void spread(const Blocks<T>& blocks, T* to, std::int64_t lanes, int n_threads) const;

  const GatherGemm<T>& stage_;
  std::vector<Task> tasks_;
  bool by_inputs_;
  std::int64_t depth_;     // padded
  mutable std::once_flag arranged_;
  mutable std::vector<T> weight_;  // by inputs
};

namespace avx2 {
extern const ByOutputsKernel<float> by_outputs_f32;
extern const ByOutputsKernel<double> by_outputs_f64;
extern const ByInputsKernel<float> by_inputs_f32;
extern const ByInputsKernel<double> by_inputs_f64;
}  // namespace avx2
namespace avx512 {
extern const ByOutputsKernel<float> by_outputs_f32;
extern const ByOutputsKernel<double> by_outputs_f64;
extern const ByInputsKernel<float> by_inputs_f32;
extern const ByInputsKernel<double> by_inputs_f64;
}  // namespace avx512

}  // namespace specxai
