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
#include "cpu/rough_gemm.h"
#include "cpu/row_sum.h"
#include "cpu/span.h"
#include "cpu/tables.h"

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
  Index places, sites, taps, groups, across, depth, made, pitch, input_rows, output_rows;
  Indices inside, outside, neighbours;
  std::unique_ptr<T[]> weight;

  Random(Index n_sites, Index most_outputs, Index most_inputs) : sites(n_sites) {
    taps = 1 + below(4);
    groups = 1 + below(3);
    across = below(2) ? sites : 1;
    depth = most_inputs ? 1 + below(most_inputs) : 0;
    made = 1 + below(most_outputs);
    pitch = below(2) ? depth : (depth + 15) / 16 * 16;
    places = 1 + below(3);
    input_rows = places * groups * depth + 3;
    for (Index i = 0; i < places * groups * depth; ++i) {
      inside.push_back(below(2) ? -1 : static_cast<std::int32_t>(below(input_rows)));
    }
    output_rows = sites * width() + 2;
    outside = distinct_rows(sites * width(), output_rows);
    for (auto& row : outside) {
      if (below(3) == 0) row = -1;
    }
    for (Index i = 0; i < sites * taps; ++i) neighbours.push_back(static_cast<std::int32_t>(below(places + 1)) - 1);
    weight = random_block<T>(width() * taps * pitch);
    for (Index i = 0; i < width() * taps; ++i) std::fill_n(weight.get() + i * pitch + depth, pitch - depth, T(0));
  }

  Index width() const { return groups * made; }

  specxai::GatherGemmTables<T> tables() const {
    return {places, sites, taps, groups, across, depth, width(), pitch, inside.data(), outside.data(),
            neighbours.data(), weight.get()};
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
  const specxai::GatherGemmStage<T> stage(random.tables());
  const bool may_spread = below(2) > 0;
  stage.run(input.get(), random.input_rows, output.get(), random.output_rows, stride, accumulate, may_spread, level);
  // For the sanitizers; its numbers are tested from Python.
  if (std::is_same_v<T, float> && stride >= specxai::probe_unit && specxai::has_rough()) {
    std::unique_ptr<T[]> rough(new T[random.output_rows * stride]());
    stage.run_rough(input.get(), random.input_rows, rough.get(), random.output_rows, stride, accumulate);
  }
  const Random<T>& r = random;
  for (Index site = 0; site < r.sites; ++site) {
    for (Index o = 0; o < r.width(); ++o) {
      if (r.outside[site * r.width() + o] < 0) continue;
      for (Index p = 0; p < stride; ++p) {
        const Index at = r.outside[site * r.width() + o] * stride + p;
        long double sum = accumulate ? before[at] : 0, size = std::fabs(sum);
        Index terms = 0;
        for (Index tap = 0; tap < r.taps; ++tap) {
          const Index place = r.neighbours[site * r.taps + tap];
          for (Index c = 0; c < r.depth && place >= 0; ++c) {
            const Index row = r.inside[(place * r.groups + o / r.made) * r.depth + c];
            if (row < 0) continue;
            const long double w = r.weight[(o * r.taps + tap) * r.pitch + c];
            const long double term = w * input[row * stride + p];
            sum += term;
            size += std::fabs(term);
            ++terms;
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
bool row_sum_agrees(Index outputs, Index probes, bool accumulate, SimdLevel level) {
  const Index input_rows = 20, in_stride = probes + below(3);
  const Index out_width = probes + below(20), out_stride = out_width + below(4);
  const Index output_rows = outputs + 1, entries = 2 * outputs;
  Indices to, from;
  for (Index e = 0; e < entries; ++e) {
    to.push_back(static_cast<std::int32_t>(below(output_rows)));
    from.push_back(static_cast<std::int32_t>(below(input_rows)));
  }
  const auto scale = random_block<T>(entries);
  const auto input = random_block<T>(input_rows * in_stride);
  const auto before = random_block<T>(output_rows * out_stride);
  std::unique_ptr<T[]> output(new T[output_rows * out_stride]);
  std::copy_n(before.get(), output_rows * out_stride, output.get());
  const Indices empty{static_cast<std::int32_t>(below(output_rows)), 0};
  const specxai::Rows<T> rows{input.get(), in_stride, output.get(), out_stride, out_width, probes, accumulate};
  specxai::RowSumStage<T>({entries, to.data(), from.data(), scale.get(), 2, empty.data()})
      .run(rows, input_rows, output_rows, level);
  for (Index row = 0; row < output_rows; ++row) {
    const bool written = std::count(to.begin(), to.end(), static_cast<std::int32_t>(row)) > 0 ||
                         std::count(empty.begin(), empty.end(), static_cast<std::int32_t>(row)) > 0;
    for (Index p = 0; p < out_stride; ++p) {
      const Index at = row * out_stride + p;
      const bool kept = !written || p >= out_width || (accumulate && p < probes);
      long double sum = kept ? before[at] : 0, size = std::fabs(sum);
      for (Index e = 0; e < entries && p < probes; ++e) {
        if (to[e] != row) continue;
        const long double term = static_cast<long double>(scale[e]) * input[from[e] * in_stride + p];
        sum += term;
        size += std::fabs(term);
      }
      if (close<T>(output[at], sum, size, entries)) continue;
      std::printf("row sum, %s, %zu-byte reals, %lld probes: %Lg, not %Lg\n", specxai::name_of(level), sizeof(T),
                  static_cast<long long>(probes), static_cast<long double>(output[at]), sum);
      return false;
    }
  }
  return true;
}

template <class T>
bool span_agrees(Index n, Index n_basis, Index width, SimdLevel level) {
  const auto basis = random_block<T>(n_basis * n), block = random_block<T>(n * width);
  std::unique_ptr<double[]> found(new double[n_basis * width]);
  std::unique_ptr<T[]> left(new T[n * width]);
  specxai::coefficients(basis.get(), n_basis, block.get(), width, n, found.get(), level);
  specxai::subtract(basis.get(), n_basis, found.get(), block.get(), width, n, left.get(), level);
  bool ok = true;
  for (Index p = 0; p < width; ++p) {
    for (Index q = 0; q < n_basis; ++q) {
      long double sum = 0, size = 1;
      for (Index j = 0; j < n; ++j) {
        const long double term = static_cast<long double>(basis[q * n + j]) * block[j * width + p];
        sum += term;
        size += std::fabs(term);
      }
      ok &= close<T>(static_cast<T>(found[q * width + p]), sum, size, n);
    }
    for (Index j = 0; j < n; ++j) {
      long double sum = block[j * width + p], size = std::fabs(sum) + 1;
      for (Index q = 0; q < n_basis; ++q) {
        const long double term = static_cast<long double>(basis[q * n + j]) * static_cast<T>(found[q * width + p]);
        sum -= term;
        size += std::fabs(term);
      }
      ok &= close<T>(left[j * width + p], sum, size, n_basis);
    }
  }
  if (!ok) {
    std::printf("span, %s, %zu-byte reals, %lld rows: wrong\n", specxai::name_of(level), sizeof(T),
                static_cast<long long>(n));
  }
  return ok;
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
      const long double got = output[i * right + j];
      std::printf("gram, %s: %Lg, not %Lg\n", specxai::name_of(level), got, sum);
      return false;
    }
  }
  return true;
}

bool tables_agree(Index n) {
  Indices rows, map = distinct_rows(n + 1, 3 * n + 1);
  const Indices begin{0, static_cast<std::int32_t>(n / 2), static_cast<std::int32_t>(n + 1)};
  for (Index i = 0; i < 2 * n; ++i) rows.push_back(static_cast<std::int32_t>(below(n + 2)) - 1);
  rows.shrink_to_fit();
  std::vector<std::int64_t> counts(2);
  specxai::count_distinct(rows.data(), 2 * n, begin.data(), 2, counts.data());
  Indices mapped(2 * n);
  specxai::map_rows(rows.data(), 2 * n, map.data(), n + 1, mapped.data());
  std::vector<std::uint8_t> cells(n + 1), seen(2);
  for (auto& cell : cells) cell = below(2);
  specxai::any_neighbour(cells.data(), n + 1, 1, rows.data(), 2, n, seen.data());
  bool ok = true;
  Index distinct[2] = {0, 0};
  for (Index row = 0; row <= n; ++row) distinct[row >= n / 2] += std::count(rows.begin(), rows.end(), row) > 0;
  ok &= counts[0] == distinct[0] && counts[1] == distinct[1];
  for (Index i = 0; i < 2 * n; ++i) ok &= mapped[i] == (rows[i] < 0 ? -1 : map[rows[i]]);
  for (Index s = 0; s < 2; ++s) {
    bool any = false;
    for (Index t = 0; t < n; ++t) any |= rows[s * n + t] >= 0 && cells[rows[s * n + t]];
    ok &= any == (seen[s] != 0);
  }
  if (!ok) std::printf("tables of %lld rows disagree\n", static_cast<long long>(n));
  return ok;
}

// A stage with one thing wrong must not come into being.
template <class Change>
bool refused(Change change, const char* what) {
  Random<float> random(3, 4, 10);
  auto tables = random.tables();
  change(random, tables);
  try {
    specxai::GatherGemmStage<float> stage(tables);
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
        for (Index stride : {1, 2, 4, 8, 16, 32, 48, 64, 80, 144}) {
          for (bool accumulate : {false, true}) {
            ok &= gather_gemm_agrees<float>(5, outputs, inputs, stride, accumulate, level);
            ok &= gather_gemm_agrees<double>(5, outputs, inputs, stride, accumulate, level);
          }
        }
      }
    }
    // So many outputs that rounding pays.
    for (Index stride : {16, 32, 48, 64, 144}) ok &= gather_gemm_agrees<float>(5, 600, 600, stride, true, level);
    for (Index rows : {0, 1, 33, 300}) {
      for (Index left : {1, 8, 65}) {
        ok &= gram_agrees<float>(rows, left, 13, level) && gram_agrees<double>(rows, 5, left, level);
      }
    }
    for (Index n : {0, 1, 97, 2100}) {
      for (Index width : {1, 4, 9}) {
        ok &= span_agrees<float>(n, 13, width, level) && span_agrees<double>(n, 5, width, level);
      }
    }
    for (Index outputs : {0, 1, 50}) {
      for (Index probes : {0, 1, 7, 16, 17, 63, 64, 100}) {
        for (bool accumulate : {false, true}) {
          ok &= row_sum_agrees<float>(outputs, probes, accumulate, level);
          ok &= row_sum_agrees<double>(outputs, probes, accumulate, level);
        }
      }
    }
    std::printf("stages, %s: %s\n", specxai::name_of(level), ok ? "ok" : "FAILED");
  }
  for (Index n : {1, 2, 50}) ok &= tables_agree(n);
  ok &= refused([](auto& r, auto&) { r.neighbours[0] = static_cast<std::int32_t>(r.places); },
                "a place beyond the input");
  ok &= refused([](auto& r, auto&) { r.neighbours[0] = -2; }, "a place before the input");
  ok &= refused([](auto& r, auto&) { r.inside[0] = -2; }, "a negative row");
  ok &= refused([](auto& r, auto&) { r.outside[0] = r.outside[1] = 0; }, "two outputs in one row");
  ok &= refused([](auto&, auto& t) { t.groups = 0; }, "no group");
  ok &= refused([](auto&, auto& t) { t.across = 2; }, "a line that does not divide the positions");
  ok &= refused([](auto&, auto& t) { t.n_inside = Index{1} << 40; }, "more units than an index counts");
  std::printf("stages: %s\n", ok ? "ok" : "FAILED");
  return ok ? 0 : 1;
}
