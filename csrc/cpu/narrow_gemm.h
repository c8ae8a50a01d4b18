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
// Each form lays something out anew.  By outputs it is the weights, once a stage, the last panel filled with zeros:
// weight(o, t, c) = panels[((o / weight_panel * taps + t) * depth + c) * weight_panel + o % weight_panel].  By inputs it
// is the inputs, once a run: those of cell i, zero where they are dead, are spread[i * stride * pitch ...], vector by
// vector and in each probe by probe; the pitch must be whole vectors.
template <class T>
using NarrowKernel = void (*)(const GatherGemm<T>& stage, const T* laid_out, const Blocks<T>& blocks, const Task& task);

// The narrow runs of one stage, which must outlive it.
template <class T>
class NarrowGemm {
 public:
  explicit NarrowGemm(const GatherGemm<T>& stage);

  // `work`: multiply-adds of the run.  Without `may_spread` it takes the form by outputs wherever there is more than one
  // site.
  void run(const Blocks<T>& blocks, std::int64_t work, bool may_spread, SimdLevel level) const;

 private:
  void lay_out_weights() const;
  void spread(const Blocks<T>& blocks, T* to, std::int64_t lanes, int n_threads) const;

  const GatherGemm<T>& stage_;
  std::vector<Task> tasks_;
  bool can_by_inputs_, by_inputs_;
  mutable std::once_flag laid_out_;
  mutable std::vector<T> panels_;  // made by the first run that needs them, and kept
};

}  // namespace specxai
