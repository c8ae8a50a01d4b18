// Stages of a plan at every SIMD level, on heap blocks of exact size, for the sanitizers to see each overrun; results
// are compared with long double sums.  Exit status 0 if all agree and every bad index is refused.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "common/simd_level.h"
#include "cpu/gather_gemm.h"
#include "cpu/gram.h"
#include "cpu/row_sum.h"

namespace {

using specxai::SimdLevel;
using Index = std::int64_t;
using Indices = std::vector<std::int32_t>;

std::mt19937_64 generator(0);

Index below(Index n) { return static_cast<Index>(generator() % static_cast<std::uint64_t>(n)); }

template <class T>
std::unique_ptr<T[]> random_block(Index n) {
  std::unique_ptr<T[]> block(new T[n]);
  std::normal_distribution<T> normal;
  for (Index i = 0; i < n; ++i) block[i] = normal(generator);
  return block;
}

// `count` different rows out of [0, rows), in random order.
Indices distinct_rows(Index count, Index rows) {
  Indices all(rows);
  for (Index i = 0; i < rows; ++i) all[i] = static_cast<std::int32_t>(i);
  std::shuffle(all.begin(), all.end(), generator);
  all.resize(count);
  all.shrink_to_fit();
  return all;
}

template <class T>
struct Random {
  Index taps, depth, width, entries, input_rows, output_rows;
  Indices run_begin{0}, run_entry, run_count, run_tap, in_row, in_column, out_begin{0}, out_row, out_column;
  std::unique_ptr<T[]> weight;

  Random(Index sites, Index most_outputs, Index most_inputs) {
    taps = 1 + below(4);
    depth = 1 + below(300);
    width = 1 + below(70);
    entries = most_inputs ? 1 + below(most_inputs) : 0;
    input_rows = entries + 3;
    for (Index e = 0; e < entries; ++e) {
      in_row.push_back(static_cast<std::int32_t>(below(input_rows)));
      in_column.push_back(static_cast<std::int32_t>(below(depth)));
    }
    for (Index s = 0; s < sites; ++s) {
      for (Index runs = entries ? below(4) : 0; runs > 0; --runs) {
        const Index entry = below(entries);
        run_entry.push_back(static_cast<std::int32_t>(entry));
        run_count.push_back(static_cast<std::int32_t>(below(entries - entry + 1)));
        run_tap.push_back(static_cast<std::int32_t>(below(taps)));
      }
      run_begin.push_back(static_cast<std::int32_t>(run_entry.size()));
      for (Index outputs = below(most_outputs + 1); outputs > 0; --outputs) {
        out_column.push_back(static_cast<std::int32_t>(below(width)));
      }
      out_begin.push_back(static_cast<std::int32_t>(out_column.size()));
    }
    output_rows = static_cast<Index>(out_column.size()) + 2;
    out_row = distinct_rows(static_cast<Index>(out_column.size()), output_rows);
    weight = random_block<T>((width + 15) / 16 * 16 * taps * depth);
  }

  specxai::GatherGemm<T> stage() const {
    return {static_cast<Index>(run_begin.size()) - 1, static_cast<Index>(run_entry.size()), entries,
            static_cast<Index>(out_row.size()), run_begin.data(), run_entry.data(), run_count.data(), run_tap.data(),
            in_row.data(), in_column.data(), out_begin.data(), out_row.data(), out_column.data(), weight.get(), taps,
            depth, width};
  }
};

template <class T>
bool close(long double got, long double sum, long double size, Index terms) {
  return std::fabs(got - sum) <= (terms + 2) * std::numeric_limits<T>::epsilon() * size;
}

template <class T>
bool gather_gemm_agrees(Index sites, Index outputs, Index inputs, Index stride, bool accumulate, SimdLevel level) {
  const Random<T> random(sites, outputs, inputs);
  const auto input = random_block<T>(random.input_rows * stride);
  const auto before = random_block<T>(random.output_rows * stride);
  std::unique_ptr<T[]> output(new T[random.output_rows * stride]);
  std::copy_n(before.get(), random.output_rows * stride, output.get());
  const auto s = random.stage();
  const specxai::GatherGemmStage<T> stage(s);
  stage.run(input.get(), random.input_rows, output.get(), random.output_rows, stride,
                                     accumulate, level);
  if (std::is_same_v<T, float> && specxai::has_bf16()) {  // for the sanitizers; its numbers are tested from Python
    std::unique_ptr<T[]> rough(new T[random.output_rows * stride]());
    stage.run_bf16(input.get(), random.input_rows, rough.get(), random.output_rows, stride, accumulate);
  }
  for (Index site = 0; site < s.n_sites; ++site) {
    for (Index o = s.out_begin[site]; o < s.out_begin[site + 1]; ++o) {
      for (Index p = 0; p < stride; ++p) {
        const Index at = s.out_row[o] * stride + p;
        long double sum = accumulate ? before[at] : 0, size = std::fabs(sum);
        Index terms = 0;
        for (Index r = s.run_begin[site]; r < s.run_begin[site + 1]; ++r) {
          for (Index e = s.run_entry[r]; e < s.run_entry[r] + s.run_count[r]; ++e, ++terms) {
            const Index c = s.out_column[o];
            const long double w = s.weight[(c / 16 * s.taps * s.depth + s.run_tap[r] * s.depth + s.in_column[e]) * 16 + c % 16];
            const long double term = w * input[s.in_row[e] * stride + p];
            sum += term;
            size += std::fabs(term);
          }
        }
        if (close<T>(output[at], sum, size, terms)) continue;
        std::printf("gather-GEMM, %s, %zu-byte reals, stride %lld: %Lg, not %Lg\n", specxai::name_of(level), sizeof(T),
                    static_cast<long long>(stride), static_cast<long double>(output[at]), sum);
        return false;
      }
    }
  }
  return true;
}

template <class T>
bool row_sum_agrees(Index outputs, Index probes, bool accumulate) {
  const Index input_rows = 20, in_stride = probes + below(3), out_stride = probes + below(20);
  Indices begin{0}, in_row;
  for (Index o = 0; o < outputs; ++o) {
    for (Index e = below(4); e > 0; --e) in_row.push_back(static_cast<std::int32_t>(below(input_rows)));
    begin.push_back(static_cast<std::int32_t>(in_row.size()));
  }
  const Index output_rows = outputs + 1;
  const Indices out_row = distinct_rows(outputs, output_rows);
  const auto scale = random_block<T>(static_cast<Index>(in_row.size()));
  const auto input = random_block<T>(input_rows * in_stride);
  const auto before = random_block<T>(output_rows * out_stride);
  std::unique_ptr<T[]> output(new T[output_rows * out_stride]);
  std::copy_n(before.get(), output_rows * out_stride, output.get());
  specxai::RowSumStage<T>({outputs, static_cast<Index>(in_row.size()), begin.data(), in_row.data(), scale.get(),
                           out_row.data()})
      .run(input.get(), input_rows, in_stride, output.get(), output_rows, out_stride, probes, accumulate);
  for (Index o = 0; o < outputs; ++o) {
    for (Index p = 0; p < out_stride; ++p) {
      const Index at = out_row[o] * out_stride + p;
      long double sum = accumulate && p < probes ? before[at] : 0, size = std::fabs(sum);
      for (Index e = begin[o]; e < begin[o + 1] && p < probes; ++e) {
        const long double term = static_cast<long double>(scale[e]) * input[in_row[e] * in_stride + p];
        sum += term;
        size += std::fabs(term);
      }
      if (close<T>(output[at], sum, size, 4)) continue;
      std::printf("row sum, %zu-byte reals: %Lg, not %Lg\n", sizeof(T), static_cast<long double>(output[at]), sum);
      return false;
    }
  }
  return true;
}

template <class T>
bool gram_agrees(Index rows, Index left, Index right, SimdLevel level) {
  const auto x = random_block<T>(rows * left), y = random_block<T>(rows * right);
  std::unique_ptr<double[]> output(new double[left * right]);
  specxai::gram(x.get(), left, y.get(), right, rows, output.get(), level);
  for (Index i = 0; i < left; ++i) {
    for (Index j = 0; j < right; ++j) {
      long double sum = 0, size = 0;
      for (Index r = 0; r < rows; ++r) {
        sum += static_cast<long double>(x[r * left + i]) * y[r * right + j];
        size += std::fabs(static_cast<long double>(x[r * left + i]) * y[r * right + j]);
      }
      if (close<double>(output[i * right + j], sum, size, rows)) continue;
      std::printf("gram, %s: %Lg, not %Lg\n", specxai::name_of(level), static_cast<long double>(output[i * right + j]), sum);
      return false;
    }
  }
  return true;
}

// A stage with one thing wrong must not come into being.
template <class Change>
bool refused(Change change, const char* what) {
  Random<float> random(3, 4, 10);
  while (random.run_entry.empty() || random.out_row.size() < 2) random = Random<float>(3, 4, 10);
  change(random);
  try {
    specxai::GatherGemmStage<float> stage(random.stage());
  } catch (const std::invalid_argument&) {
    return true;
  }
  std::printf("not refused: %s\n", what);
  return false;
}

}  // namespace

int main() {
  bool ok = true;
  for (SimdLevel level : specxai::supported_levels()) {
    for (Index outputs : {1, 5, 7, 100}) {
      for (Index inputs : {0, 1, 30, 700}) {
        for (Index stride : {16, 32, 48, 64, 80, 144}) {
          for (bool accumulate : {false, true}) {
            ok &= gather_gemm_agrees<float>(5, outputs, inputs, stride, accumulate, level);
            ok &= gather_gemm_agrees<double>(5, outputs, inputs, stride, accumulate, level);
          }
        }
      }
    }
    for (Index rows : {0, 1, 33, 300}) {
      for (Index left : {1, 8, 65}) ok &= gram_agrees<float>(rows, left, 13, level) && gram_agrees<double>(rows, 5, left, level);
    }
    std::printf("stages, %s: %s\n", specxai::name_of(level), ok ? "ok" : "FAILED");
  }
  for (Index outputs : {0, 1, 50}) {
    for (Index probes : {0, 1, 17}) {
      for (bool accumulate : {false, true}) {
        ok &= row_sum_agrees<float>(outputs, probes, accumulate) && row_sum_agrees<double>(outputs, probes, accumulate);
      }
    }
  }
  ok &= refused([](auto& r) { r.run_tap[0] = static_cast<std::int32_t>(r.taps); }, "a tap beyond the kernel");
  ok &= refused([](auto& r) { r.in_column[0] = static_cast<std::int32_t>(r.depth); }, "an input beyond the weights");
  ok &= refused([](auto& r) { r.out_column[0] = static_cast<std::int32_t>(r.width); }, "an output beyond the weights");
  ok &= refused([](auto& r) { r.in_row[0] = -1; }, "a negative row");
  ok &= refused([](auto& r) { r.out_row[0] = r.out_row[1]; }, "two outputs in one row");
  ok &= refused([](auto& r) { r.run_count[0] = static_cast<std::int32_t>(r.entries + 1); }, "a run beyond the entries");
  ok &= refused([](auto& r) { r.out_begin[1] = r.out_begin[3] + 1; }, "offsets that decrease");
  std::printf("stages: %s\n", ok ? "ok" : "FAILED");
  return ok ? 0 : 1;
}
