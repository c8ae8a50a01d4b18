#include "cpu/peak.h"

#include <type_traits>

#include "common/checks.h"
#include "common/threads.h"

namespace specxai {
namespace {

template <class T>
MultiplyAdd<T> kernel_for(SimdLevel level) {
  constexpr bool f32 = std::is_same_v<T, float>;
#ifdef SPECXAI_X86_SIMD
  if constexpr (f32) {
    if (level == SimdLevel::avx512) return avx512::multiply_add_f32;
    if (level == SimdLevel::avx2) return avx2::multiply_add_f32;
  } else {
    if (level == SimdLevel::avx512) return avx512::multiply_add_f64;
    if (level == SimdLevel::avx2) return avx2::multiply_add_f64;
  }
#endif
  (void)level;
  if constexpr (f32) return scalar::multiply_add_f32;
  else return scalar::multiply_add_f64;
}

}  // namespace

template <class T>
double multiply_add(std::int64_t rounds, SimdLevel level) {
  require_count(rounds, "rounds");
  const MultiplyAdd<T> kernel = kernel_for<T>(level);
  const int n_threads = thread_count(1024, rounds << 24);
  double total = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : total)
  {
    T sink = 0;
    total += static_cast<double>(kernel(rounds, &sink));
  }
  return total;
}

template double multiply_add<float>(std::int64_t, SimdLevel);
template double multiply_add<double>(std::int64_t, SimdLevel);

}  // namespace specxai
