#include "cpu/gram.h"

#include <algorithm>
#include <memory>
#include <new>

#include "common/threads.h"
#include "cpu/kernels.h"

namespace specxai {
namespace {

// The rows are summed in this many parts and those in order: equal bits on any number of threads.
constexpr std::int64_t parts = 8;

struct AlignedDelete {
  void operator()(double* p) const { ::operator delete(p, std::align_val_t{64}); }
};

std::int64_t rounded_up(std::int64_t n) { return (n + gram_unit - 1) / gram_unit * gram_unit; }

}  // namespace

template <class T>
void gram(const T* left, std::int64_t n_left, const T* right, std::int64_t n_right, std::int64_t n_rows,
          double* output, SimdLevel level) {
  const std::int64_t stride = rounded_up(n_right);
  const std::int64_t n_sums = rounded_up(n_left * stride), n_scratch = gram_rows * (rounded_up(n_left) + stride);
  const std::int64_t per_part = n_sums + n_scratch;
  const std::unique_ptr<double, AlignedDelete> memory(static_cast<double*>(
      ::operator new(static_cast<std::size_t>(parts * per_part) * sizeof(double), std::align_val_t{64})));
  const GramKernel<T> kernel = kernels<T>(level).gram;
  const int n_threads = thread_count(parts, n_rows * n_left * n_right);

#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t begin = n_rows * part / parts, end = n_rows * (part + 1) / parts;
    double* const sums = memory.get() + part * per_part;
    std::fill_n(sums, n_sums, 0.0);
    kernel(left + begin * n_left, n_left, right + begin * n_right, n_right, end - begin, sums, sums + n_sums);
  }
  const bool symmetric = left == right && n_left == n_right;
  for (std::int64_t i = 0; i < n_left; ++i) {
    for (std::int64_t j = 0; j < n_right; ++j) {
      const std::int64_t at = symmetric && j < i ? j * stride + i : i * stride + j;
      double sum = 0;
      for (std::int64_t part = 0; part < parts; ++part) sum += memory.get()[part * per_part + at];
      output[i * n_right + j] = sum;
    }
  }
}

template void gram<float>(const float*, std::int64_t, const float*, std::int64_t, std::int64_t, double*, SimdLevel);
template void gram<double>(const double*, std::int64_t, const double*, std::int64_t, std::int64_t, double*, SimdLevel);

}  // namespace specxai
