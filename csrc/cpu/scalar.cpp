// The meaning of every kernel, in plain loops; the other instruction sets are tested against it.
#define SPECXAI_ISA scalar
#define SPECXAI_VECTOR_BYTES 16  // what every x86-64 and every 64-bit Arm has
#define SPECXAI_REGISTERS 16
#include "common/simd_prelude.inc"
#include "cpu/kernels.h"
#include "cpu/peak_simd.inc"

namespace specxai::scalar {
namespace {

template <class T>
void gather_gemm(const GatherGemm<T>& s, const Blocks<T>& blocks, const Task& task, const Scratch&) {
  for (Index site = task.site_begin; site < task.site_end; ++site) {
    for (Index o = s.out_begin[site]; o < s.out_begin[site + 1]; ++o) {
      const Index column = s.out_column[o];
      if (column < task.first || column >= task.last) continue;
      T* y = blocks.output + s.out_row[o] * blocks.stride;
      const T* weights = s.weight + column * s.taps * s.pitch;
      if (!blocks.accumulate) {
        for (Index p = 0; p < blocks.stride; ++p) y[p] = T(0);
      }
      for (Index r = s.run_begin[site]; r < s.run_begin[site + 1]; ++r) {
        const Index cell = s.run_cell[r];
        for (Index e = s.cell_begin[cell]; e < s.cell_begin[cell + 1]; ++e) {
          const T w = weights[s.run_tap[r] * s.pitch + s.in_column[e]];
          const T* z = blocks.input + s.in_row[e] * blocks.stride;
          for (Index p = 0; p < blocks.stride; ++p) y[p] += w * z[p];
        }
      }
    }
  }
}

template <class T>
void row_sum(const SortedSum<T>& s, const Rows<T>& rows, Index first, Index last) {
  for (Index o = first; o < last; ++o) {
    T* y = rows.output + s.to[o] * rows.output_stride;
    for (Index p = rows.accumulate ? rows.n_probes : 0; p < rows.output_width; ++p) y[p] = T(0);
    for (Index e = s.begin[o]; e < s.begin[o + 1]; ++e) {
      const T* z = rows.input + s.from[e] * rows.input_stride;
      const T scale = s.scale ? s.scale[e] : T(1);
      for (Index p = 0; p < rows.n_probes; ++p) y[p] += scale * z[p];
    }
  }
}

template <class T>
void low_rank(const LowRank<T>& s, const Rows<T>& rows, Index first, Index last) {
  for (Index g = first; g < last; ++g) {
    for (Index p = 0; p < rows.output_width; ++p) {
      const bool used = p < rows.n_probes;
      T sum[most_rank] = {};
      for (Index e = s.read_begin[g]; used && e < s.read_begin[g + 1]; ++e) {
        for (Index r = 0; r < s.rank; ++r) {
          sum[r] += s.right[e * s.rank + r] * rows.input[s.read_row[e] * rows.input_stride + p];
        }
      }
      for (Index e = s.write_begin[g]; e < s.write_begin[g + 1]; ++e) {
        T& y = rows.output[s.write_row[e] * rows.output_stride + p];
        if (!used || !rows.accumulate) y = T(0);
        if (!used) continue;
        if (s.from_row[e] >= 0) y += s.diagonal[e] * rows.input[s.from_row[e] * rows.input_stride + p];
        for (Index r = 0; r < s.rank; ++r) y += s.left[e * s.rank + r] * sum[r];
      }
    }
  }
}

template <class T>
void gram(const T* left, Index n_left, const T* right, Index n_right, Index n_rows, double* sums, double*) {
  const Index stride = (n_right + gram_unit - 1) / gram_unit * gram_unit;
  for (Index r = 0; r < n_rows; ++r, left += n_left, right += n_right) {
    for (Index i = 0; i < n_left; ++i) {
      const double x = left[i];
      for (Index j = 0; j < n_right; ++j) sums[i * stride + j] += x * static_cast<double>(right[j]);
    }
  }
}

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

template <class T>
constexpr Kernels<T> all = {SPECXAI_VECTOR_BYTES, gather_gemm<T>, nullptr, nullptr, row_sum<T>, low_rank<T>,
                            gram<T>, coefficients<T>, subtract<T>, peak::multiply_add<T>};

}  // namespace

const Kernels<float> f32 = all<float>;
const Kernels<double> f64 = all<double>;

}  // namespace specxai::scalar
