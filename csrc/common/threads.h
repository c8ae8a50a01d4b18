// How many OpenMP threads a job is worth; torch's own pool and count, as both use the system's libgomp.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace specxai {

// `parts`: what can be shared out; `work`: multiply-adds in all, of which a second thread needs a quarter million to
// save more than it costs.
inline int thread_count(std::int64_t parts, std::int64_t work) {
#ifdef _OPENMP
  if (omp_in_parallel()) return 1;
  const std::int64_t useful = std::min(parts, work >> 18);
  return static_cast<int>(std::clamp<std::int64_t>(useful, 1, omp_get_max_threads()));
#else
  (void)parts, (void)work;
  return 1;
#endif
}

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace specxai
