#include "cpu/span.h"

#include <algorithm>
#include <vector>

#include "common/threads.h"
#include "cpu/kernels.h"

namespace specxai {
namespace {

// The columns are summed in this many parts and those in order: equal bits on any number of threads.
constexpr std::int64_t parts = 8;

}  // namespace

template <class T>
void coefficients(const T* basis, std::int64_t n_basis, const T* block, std::int64_t width, std::int64_t n,
                  double* output, SimdLevel level) {
  const std::int64_t n_sums = n_basis * width, n_scratch = span_chunk * span_unit;
  std::vector<double> sums(static_cast<std::size_t>(parts * n_sums), 0.0);
  std::vector<T> scratch(static_cast<std::size_t>(parts * n_scratch));
  const auto kernel = kernels<T>(level).coefficients;
  const int n_threads = thread_count(parts, n * n_sums);

#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t part = 0; part < parts; ++part) {
    kernel(basis, n_basis, n, block, width, n * part / parts, n * (part + 1) / parts, sums.data() + part * n_sums,
           scratch.data() + part * n_scratch);
  }
  for (std::int64_t i = 0; i < n_sums; ++i) {
    double sum = 0;
    for (std::int64_t part = 0; part < parts; ++part) sum += sums[part * n_sums + i];
    output[i] = sum;
  }
}

template <class T>
void subtract(const T* basis, std::int64_t n_basis, const double* factors, const T* block, std::int64_t width,
              std::int64_t n, T* output, SimdLevel level) {
  const std::int64_t padded = (width + span_unit - 1) / span_unit * span_unit;
  std::vector<T> rounded(static_cast<std::size_t>(n_basis * padded), T(0));
  for (std::int64_t i = 0; i < n_basis; ++i) {
    for (std::int64_t p = 0; p < width; ++p) rounded[i * padded + p] = static_cast<T>(factors[i * width + p]);
  }
  const auto kernel = kernels<T>(level).subtract;
  const std::int64_t chunks = (n + span_chunk - 1) / span_chunk;
  const int n_threads = thread_count(chunks, n * n_basis * width);

#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    kernel(basis, n_basis, n, rounded.data(), block, width, chunk * span_chunk, std::min(n, (chunk + 1) * span_chunk),
           output);
  }
}

#define SPECXAI_SPAN(T)                                                                                      \
  template void coefficients<T>(const T*, std::int64_t, const T*, std::int64_t, std::int64_t, double*, SimdLevel); \
  template void subtract<T>(const T*, std::int64_t, const double*, const T*, std::int64_t, std::int64_t, T*, SimdLevel);
SPECXAI_SPAN(float)
SPECXAI_SPAN(double)
#undef SPECXAI_SPAN

}  // namespace specxai
