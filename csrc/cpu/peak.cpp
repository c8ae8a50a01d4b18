#include "cpu/peak.h"

#include "common/checks.h"
#include "common/threads.h"
#include "cpu/kernels.h"

namespace specxai {
template <class T>
double multiply_add(std::int64_t rounds, SimdLevel level) {
  require_count(rounds, "rounds");
  const MultiplyAdd<T> kernel = kernels<T>(level).multiply_add;
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
