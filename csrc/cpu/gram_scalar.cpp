// The meaning of the kernel, in plain loops; the other ISAs are tested against it.
#include "cpu/gram.h"

namespace specxai::scalar {
namespace {

template <class T>
void run(const T* left, std::int64_t n_left, const T* right, std::int64_t n_right, std::int64_t n_rows, double* sums,
         double*) {
  const std::int64_t stride = (n_right + gram_unit - 1) / gram_unit * gram_unit;
  for (std::int64_t r = 0; r < n_rows; ++r, left += n_left, right += n_right) {
    for (std::int64_t i = 0; i < n_left; ++i) {
      const double x = left[i];
      for (std::int64_t j = 0; j < n_right; ++j) sums[i * stride + j] += x * static_cast<double>(right[j]);
    }
  }
}

}  // namespace

const GramKernel<float> gram_f32 = run<float>;
const GramKernel<double> gram_f64 = run<double>;

}  // namespace specxai::scalar
