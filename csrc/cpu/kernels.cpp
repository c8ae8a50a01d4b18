#include "cpu/kernels.h"

#include <type_traits>

namespace specxai {
namespace {

template <class T>
const Kernels<T>& of_type(const Kernels<float>& f32, const Kernels<double>& f64) {
  if constexpr (std::is_same_v<T, float>) return f32;
  else return f64;
}

}  // namespace

template <class T>
const Kernels<T>& kernels(SimdLevel level) {
#ifdef SPECXAI_X86_SIMD
  if (level == SimdLevel::avx512) return of_type<T>(avx512::f32, avx512::f64);
  if (level == SimdLevel::avx2) return of_type<T>(avx2::f32, avx2::f64);
#endif
  (void)level;
  return of_type<T>(scalar::f32, scalar::f64);
}

template const Kernels<float>& kernels<float>(SimdLevel);
template const Kernels<double>& kernels<double>(SimdLevel);

}  // namespace specxai
