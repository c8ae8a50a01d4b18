// The meaning of the stage, in plain loops; the other ISAs are tested against it.
#include "cpu/gather_gemm.h"

namespace specxai::scalar {
namespace {

template <class T>
void run(const GatherGemm<T>& s, const Blocks<T>& blocks, const Task& task, const Scratch&) {
  for (std::int64_t site = task.site_begin; site < task.site_end; ++site) {
    for (std::int64_t o = s.out_begin[site]; o < s.out_begin[site + 1]; ++o) {
      const std::int64_t column = s.out_column[o];
      if (column < task.first || column >= task.last) continue;
      T* y = blocks.output + s.out_row[o] * blocks.stride;
      const T* weights = s.weight + column * s.taps * s.pitch;
      if (!blocks.accumulate) {
        for (std::int64_t p = 0; p < blocks.stride; ++p) y[p] = T(0);
      }
      for (std::int64_t r = s.run_begin[site]; r < s.run_begin[site + 1]; ++r) {
        const std::int64_t cell = s.run_cell[r];
        for (std::int64_t e = s.cell_begin[cell]; e < s.cell_begin[cell + 1]; ++e) {
          const T w = weights[s.run_tap[r] * s.pitch + s.in_column[e]];
          const T* z = blocks.input + s.in_row[e] * blocks.stride;
          for (std::int64_t p = 0; p < blocks.stride; ++p) y[p] += w * z[p];
        }
      }
    }
  }
}

}  // namespace

const GatherGemmKernel<float> gather_gemm_f32 = run<float>;
const GatherGemmKernel<double> gather_gemm_f64 = run<double>;

}  // namespace specxai::scalar
