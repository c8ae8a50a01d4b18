#include "cpu/gated_linear.h"

#include <algorithm>
#include <memory>
#include <new>
#include <type_traits>

#include "common/threads.h"

namespace specxai {
namespace {

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};

template <class T>
const GatedLinearKernel<T>& kernel_for(SimdLevel level) {
  constexpr bool f32 = std::is_same_v<T, float>;
#ifdef SPECXAI_X86_SIMD
  if constexpr (f32) {
    if (level == SimdLevel::avx512) return avx512::gated_linear_f32;
    if (level == SimdLevel::avx2) return avx2::gated_linear_f32;
  } else {
    if (level == SimdLevel::avx512) return avx512::gated_linear_f64;
    if (level == SimdLevel::avx2) return avx2::gated_linear_f64;
  }
#endif
  (void)level;
  if constexpr (f32) return scalar::gated_linear_f32;
  else return scalar::gated_linear_f64;
}

}  // namespace

template <class T>
void gated_linear(const GatedLinear<T>& stage, SimdLevel level) {
  const std::int64_t n_outputs = stage.transpose ? stage.n_cols : stage.n_rows;
  const std::int64_t n_inputs = stage.transpose ? stage.n_rows : stage.n_cols;
  if (n_outputs == 0 || stage.n_probes == 0) return;
  if (n_inputs == 0) {
    std::fill_n(stage.output, n_outputs * stage.n_probes, T(0));
    return;
  }

  const GatedLinearKernel<T>& kernel = kernel_for<T>(level);
  const std::int64_t n_panels = (n_outputs + kernel.panel - 1) / kernel.panel;
  const int n_threads = thread_count(n_panels, n_outputs * n_inputs * stage.n_probes);
  // Allocated here, since an exception must not leave a parallel region.
  const std::size_t per_thread = (kernel.workspace + 15) / 16 * 16;
  const std::size_t bytes = std::max<std::size_t>(1, n_threads * per_thread) * sizeof(T);
  const std::unique_ptr<T, AlignedDelete> workspace(static_cast<T*>(::operator new(bytes, std::align_val_t{64})));

#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int t = 0; t < n_threads; ++t) {
    const std::int64_t begin = n_panels * t / n_threads * kernel.panel;
    const std::int64_t end = std::min(n_outputs, n_panels * (t + 1) / n_threads * kernel.panel);
    kernel.run(stage, begin, end, workspace.get() + t * per_thread);
  }
}

template void gated_linear<float>(const GatedLinear<float>&, SimdLevel);
template void gated_linear<double>(const GatedLinear<double>&, SimdLevel);

}  // namespace specxai
