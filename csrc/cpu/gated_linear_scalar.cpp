// The meaning of the stage, in plain loops; the other ISAs are tested against it.
#include "cpu/gated_linear.h"

namespace specxai::scalar {
namespace {

template <class T>
void run(const GatedLinear<T>& s, std::int64_t begin, std::int64_t end, T*) {
  const std::int64_t depth = s.transpose ? s.n_rows : s.n_cols;
  for (std::int64_t out = begin; out < end; ++out) {
    T* y = s.output + out * s.n_probes;
    for (std::int64_t p = 0; p < s.n_probes; ++p) y[p] = T(0);
    for (std::int64_t in = 0; in < depth; ++in) {
      const std::int64_t r = s.transpose ? in : out;
      const std::int64_t c = s.transpose ? out : in;
      const T w = s.weight[(s.rows ? s.rows[r] : r) * s.weight_stride + (s.cols ? s.cols[c] : c)];
      const T gated = s.scale ? s.scale[r] * w : w;
      const T* z = s.input + in * s.n_probes;
      for (std::int64_t p = 0; p < s.n_probes; ++p) y[p] += gated * z[p];
    }
  }
}

}  // namespace

const GatedLinearKernel<float> gated_linear_f32{1, 0, run<float>};
const GatedLinearKernel<double> gated_linear_f64{1, 0, run<double>};

}  // namespace specxai::scalar
