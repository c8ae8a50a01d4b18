// Runs every SIMD level over awkward sizes on heap blocks of exact size, for the sanitizers to see each overrun, and
// compares with long double sums.  Exit status 0 if all agree.
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>

#include "common/simd_level.h"
#include "cpu/gated_linear.h"

namespace {

using specxai::SimdLevel;
using Index = std::int64_t;

std::mt19937_64 generator(0);

template <class T>
using Block = std::unique_ptr<T[]>;

template <class T>
Block<T> random_block(Index n) {
  Block<T> block(new T[n]);
  std::normal_distribution<T> normal;
  for (Index i = 0; i < n; ++i) block[i] = normal(generator);
  return block;
}

// Every unit of [0, n) with probability 1/2, in order; `count` is how many.
Block<Index> random_units(Index n, Index& count) {
  std::unique_ptr<bool[]> live(new bool[n]);
  count = 0;
  for (Index i = 0; i < n; ++i) count += live[i] = generator() % 2;
  Block<Index> units(new Index[count]);
  for (Index i = 0, at = 0; i < n; ++i) {
    if (live[i]) units[at++] = i;
  }
  return units;
}

template <class T>
bool agrees(Index m, Index n, Index probes, bool subset, bool transpose, SimdLevel level) {
  Index n_rows = m, n_cols = n;
  const auto rows = subset ? random_units(m, n_rows) : nullptr;
  const auto cols = subset ? random_units(n, n_cols) : nullptr;
  const auto scale = subset ? random_block<T>(n_rows) : nullptr;
  const auto weight = random_block<T>(m * n);
  const Index n_in = transpose ? n_rows : n_cols, n_out = transpose ? n_cols : n_rows;
  const auto input = random_block<T>(n_in * probes);
  Block<T> output(new T[n_out * probes]);
  for (Index i = 0; i < n_out * probes; ++i) output[i] = std::numeric_limits<T>::quiet_NaN();

  specxai::gated_linear<T>({weight.get(), n, rows.get(), n_rows, cols.get(), n_cols, scale.get(), input.get(),
                            output.get(), probes, transpose},
                           level);

  for (Index o = 0; o < n_out; ++o) {
    for (Index p = 0; p < probes; ++p) {
      long double sum = 0, size = 0;
      for (Index i = 0; i < n_in; ++i) {
        const Index r = transpose ? i : o, c = transpose ? o : i;
        const long double term = static_cast<long double>(weight[(rows ? rows[r] : r) * n + (cols ? cols[c] : c)]) *
                                 (scale ? scale[r] : 1) * input[i * probes + p];
        sum += term;
        size += std::fabs(term);
      }
      const long double error = std::fabs(output[o * probes + p] - sum);
      if (error <= (n_in + 2) * std::numeric_limits<T>::epsilon() * size) continue;
      std::printf("%s, %zu-byte reals, W %lld x %lld, %lld probes, subset %d, transpose %d: error %Lg at (%lld, %lld)\n",
                  specxai::name_of(level), sizeof(T), static_cast<long long>(m), static_cast<long long>(n),
                  static_cast<long long>(probes), subset, transpose, error, static_cast<long long>(o),
                  static_cast<long long>(p));
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  bool ok = true;
  for (SimdLevel level : specxai::supported_levels()) {
    for (Index m : {0, 1, 5, 12, 13, 65}) {
      for (Index n : {0, 1, 3, 63, 257, 600}) {
        for (Index probes : {0, 1, 7, 16, 33, 64, 270}) {
          for (int flags = 0; flags < 4; ++flags) {
            ok &= agrees<float>(m, n, probes, flags & 1, flags & 2, level);
            ok &= agrees<double>(m, n, probes, flags & 1, flags & 2, level);
          }
        }
      }
    }
    std::printf("%s: %s\n", specxai::name_of(level), ok ? "ok" : "FAILED");
  }
  return ok ? 0 : 1;
}
