// The CUDA kernels' bodies, emulated on the CPU (cuda/block.cuh), on heap blocks of exact size, for the sanitizers to
// see each overrun.  Exit status 0 if the results are those of plain loops.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cuda/compact.h"
#include "cuda/gather_gemm.h"
#include "cuda/gram.h"
#include "cuda/span.h"
#include "cuda/tables.h"

namespace {

using Index = std::int64_t;
using Indices = std::vector<std::int32_t>;
using specxai::cuda::Place;

std::mt19937_64 generator(0);
int failures = 0;

Index below(Index n) { return static_cast<Index>(generator() % static_cast<std::uint64_t>(n)); }

template <class T>
std::vector<T> random_block(Index n) {
  std::vector<T> block(n);
  std::normal_distribution<T> normal;
  for (T& x : block) x = normal(generator);
  return block;
}

void check(bool ok, const char* what, Index a, Index b, Index c) {
  if (ok) return;
  ++failures;
  std::printf("%s of %ld x %ld x %ld differs\n", what, static_cast<long>(a), static_cast<long>(b),
              static_cast<long>(c));
}

template <class T>
bool near(T got, double want, double size) {
  return std::abs(got - want) <= 64 * std::numeric_limits<T>::epsilon() * (size + 1e-300);
}

// A table (lines, width) of different rows, some of them -1.
Indices random_table(Index lines, Index width) {
  Indices table(lines * width);
  for (Index i = 0; i < lines * width; ++i) table[i] = below(3) ? static_cast<std::int32_t>(i) : -1;
  return table;
}

struct Lists {
  Indices begin, row, column;
};

Lists lists_of(const Indices& table, Index lines, Index width) {
  const Index n = lines * width;
  Lists lists{Indices(lines + 1), Indices(n), Indices(n)};
  Indices workspace(specxai::cuda::compact_workspace(n)), at(n), rank(n), count(1);
  specxai::cuda::compact(table.data(), n, width,
                         {at.data(), rank.data(), lists.row.data(), lists.column.data(), lists.begin.data(),
                          count.data()},
                         workspace.data(), Place{});
  Index found = 0;
  bool ok = true;
  for (Index i = 0; i < n; ++i) {
    if (i % width == 0) ok &= lists.begin[i / width] == found;
    ok &= rank[i] == (table[i] < 0 ? -1 : found);
    if (table[i] < 0) continue;
    ok &= at[found] == i && lists.row[found] == table[i] && lists.column[found] == i % width;
    ++found;
  }
  check(ok && lists.begin[lines] == found && count[0] == found, "compact", lines, width, 1);
  return lists;
}

template <class T>
void gather_gemm(Index positions, Index sites, Index groups, Index taps, Index depth, Index width, Index probes) {
  const Indices inside = random_table(positions, groups * depth), outside = random_table(sites, groups * width);
  Indices neighbours(sites * taps);
  for (std::int32_t& q : neighbours) q = static_cast<std::int32_t>(below(positions + 1)) - 1;
  const Lists in = lists_of(inside, positions * groups, depth), out = lists_of(outside, sites * groups, width);
  const std::vector<T> weight = random_block<T>(groups * taps * depth * width);
  const std::vector<T> input = random_block<T>(positions * groups * depth * probes);
  std::vector<T> output(sites * groups * width * probes, T(0.5));
  specxai::cuda::gather_gemm(
      specxai::cuda::GatherGemm<T>{sites, groups, taps, depth, width, neighbours.data(), in.begin.data(),
                                   in.row.data(), in.column.data(), out.begin.data(), out.row.data(),
                                   out.column.data(), weight.data()},
      input.data(), probes, output.data(), probes, probes, true, Place{});
  bool ok = true;
  for (Index s = 0; s < sites; ++s) {
    for (Index go = 0; go < groups * width; ++go) {
      const Index row = outside[s * groups * width + go], g = go / width, o = go % width;
      for (Index p = 0; row >= 0 && p < probes; ++p) {
        double want = 0.5, size = 0.5;
        for (Index t = 0; t < taps; ++t) {
          const Index q = neighbours[s * taps + t];
          for (Index c = 0; q >= 0 && c < depth; ++c) {
            const Index from = inside[(q * groups + g) * depth + c];
            if (from < 0) continue;
            const double w = weight[((g * taps + t) * depth + c) * width + o], z = input[from * probes + p];
            want += w * z, size += std::abs(w * z);
          }
        }
        ok &= near(output[row * probes + p], want, size);
      }
    }
  }
  check(ok, "gather_gemm", sites, width, probes);
}

template <class T>
void gram(Index rows, Index left, Index right) {
  const std::vector<T> X = random_block<T>(rows * left), Y = right ? random_block<T>(rows * right) : X;
  const Index columns = right ? right : left;
  std::vector<double> G(left * columns), workspace(specxai::cuda::gram_workspace(left, columns, rows));
  specxai::cuda::gram(X.data(), left, right ? Y.data() : X.data(), columns, rows, G.data(), workspace.data(), Place{});
  bool ok = true;
  for (Index i = 0; i < left; ++i) {
    for (Index j = 0; j < columns; ++j) {
      double want = 0, size = 0;
      for (Index r = 0; r < rows; ++r) {
        want += double(X[r * left + i]) * Y[r * columns + j];
        size += std::abs(double(X[r * left + i]) * Y[r * columns + j]);
      }
      ok &= near(G[i * columns + j], want, size);
    }
  }
  check(ok, "gram", rows, left, columns);
}

template <class T>
void solve(Index rows, Index width) {
  const std::vector<T> X = random_block<T>(rows * width);
  std::vector<double> R = random_block<double>(width * width);
  for (Index i = 0; i < width; ++i) R[i * width + i] = 2.0 * static_cast<double>(width);
  std::vector<T> Q(rows * width);
  specxai::cuda::solve_triangular(X.data(), R.data(), rows, width, Q.data(), Place{});
  bool ok = true;
  for (Index r = 0; r < rows; ++r) {
    for (Index j = 0; j < width; ++j) {
      double want = 0, size = 0;
      for (Index i = 0; i <= j; ++i) {
        want += Q[r * width + i] * R[i * width + j];
        size += std::abs(Q[r * width + i] * R[i * width + j]);
      }
      ok &= near(X[r * width + j], want, size);
    }
  }
  check(ok, "solve_triangular", rows, width, 1);
}

template <class T>
void span(Index n, Index vectors, Index width) {
  const std::vector<T> basis = random_block<T>(vectors * n), X = random_block<T>(n * width);
  const std::vector<double> before = random_block<double>(vectors * width);
  std::vector<double> H(vectors * width), workspace(specxai::cuda::span_workspace(vectors, width, n));
  std::vector<T> left(n * width);
  specxai::cuda::span(basis.data(), vectors, before.data(), X.data(), width, n, left.data(), H.data(),
                      workspace.data(), Place{});
  bool ok = true;
  for (Index r = 0; r < n; ++r) {
    for (Index p = 0; p < width; ++p) {
      double want = X[r * width + p], size = std::abs(want);
      for (Index q = 0; q < vectors; ++q) {
        want -= basis[q * n + r] * before[q * width + p];
        size += std::abs(basis[q * n + r] * before[q * width + p]);
      }
      ok &= near(left[r * width + p], want, size);
    }
  }
  for (Index q = 0; q < vectors; ++q) {
    for (Index p = 0; p < width; ++p) {
      double want = 0, size = 0;
      for (Index r = 0; r < n; ++r) {
        want += double(basis[q * n + r]) * left[r * width + p];
        size += std::abs(double(basis[q * n + r]) * left[r * width + p]);
      }
      ok &= near(H[q * width + p], want, size);
    }
  }
  check(ok, "span", n, vectors, width);
}

void tables() {
  const Index positions = 7, groups = 3, depth = 5, sites = 90, taps = 4;
  const Indices inside = random_table(positions, groups * depth);
  Indices neighbours(sites * taps), rows(sites * groups * taps * depth), mapped(sites * taps);
  for (std::int32_t& q : neighbours) q = static_cast<std::int32_t>(below(positions + 2)) - 1;
  std::vector<std::uint8_t> cells(positions * groups), seen(sites * groups);
  for (std::uint8_t& cell : cells) cell = below(4) == 0;
  const Indices map = random_table(positions, 1);
  specxai::cuda::tap_rows(inside.data(), positions, groups, depth, neighbours.data(), sites, taps, rows.data(), Place{});
  specxai::cuda::any_neighbour(cells.data(), positions, groups, neighbours.data(), sites, taps, seen.data(), Place{});
  specxai::cuda::map_rows(neighbours.data(), sites * taps, map.data(), positions, mapped.data(), Place{});
  bool ok = true;
  for (Index s = 0; s < sites; ++s) {
    for (Index g = 0; g < groups; ++g) {
      bool any = false;
      for (Index t = 0; t < taps; ++t) {
        Index q = neighbours[s * taps + t];
        q = q < positions ? q : -1;  // beyond the table is none
        any |= q >= 0 && cells[q * groups + g];
        ok &= mapped[s * taps + t] == (q < 0 ? -1 : map[q]);
        for (Index c = 0; c < depth; ++c) {
          ok &= rows[((s * groups + g) * taps + t) * depth + c] == (q < 0 ? -1 : inside[(q * groups + g) * depth + c]);
        }
      }
      ok &= seen[s * groups + g] == any;
    }
  }
  check(ok, "tables", sites, taps, groups);
}

template <class T>
void all() {
  for (const Index probes : {1, 4, 7, 16, 64, 100}) {
    gather_gemm<T>(5, 4, 1, 3, 7, 9, probes);
    gather_gemm<T>(9, 3, 2, 9, 33, 130, probes);
    gather_gemm<T>(3, 2, 3, 1, 1, 1, probes);
  }
  gather_gemm<T>(5, 2, 1, specxai::cuda::most_taps, 2, 3, 8);
  for (const Index width : {1, 7, 8, 9, 64, 128}) {
    gram<T>(70, width, 0);
    solve<T>(65, width);
  }
  gram<T>(333, 5, 70);
  span<T>(17'000, 3, 5);  // parts of more than one chunk
  for (const Index width : {1, 4, 5, 8, 9, 16, 32}) {
    span<T>(200, 33, width);
    span<T>(64, 1, width);
  }
}

}  // namespace

int main() {
  lists_of(random_table(3, 5000), 3, 5000);
  lists_of(random_table(700, 13), 700, 13);
  tables();
  all<float>();
  all<double>();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
