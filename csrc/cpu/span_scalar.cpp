// The meaning of the kernels, in plain loops; the other ISAs are tested against it.
#include "cpu/span.h"

namespace specxai::scalar {
namespace {

using Index = std::int64_t;

template <class T>
void coefficients(const T* basis, Index n_basis, Index n, const T* block, Index width, Index begin, Index end,
                  double* sums, T*) {
  for (Index q = 0; q < n_basis; ++q) {
    for (Index j = begin; j < end; ++j) {
      const double b = basis[q * n + j];
      for (Index p = 0; p < width; ++p) sums[q * width + p] += b * static_cast<double>(block[j * width + p]);
    }
  }
}

template <class T>
void subtract(const T* basis, Index n_basis, Index n, const T* factors, const T* block, Index width, Index begin,
              Index end, T* output) {
  const Index padded = (width + span_unit - 1) / span_unit * span_unit;
  for (Index j = begin; j < end; ++j) {
    for (Index p = 0; p < width; ++p) {
      T sum = 0;
      for (Index q = 0; q < n_basis; ++q) sum += basis[q * n + j] * factors[q * padded + p];
      output[j * width + p] = block[j * width + p] - sum;
    }
  }
}

}  // namespace

const SpanKernels<float> span_f32 = {coefficients<float>, subtract<float>};
const SpanKernels<double> span_f64 = {coefficients<double>, subtract<double>};

}  // namespace specxai::scalar
