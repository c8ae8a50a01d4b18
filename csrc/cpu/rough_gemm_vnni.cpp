// AVX512-VNNI: vpdpwssd adds two products of 16 bits to each of 16 sums.
#include <immintrin.h>

#include <cstring>

#include "cpu/rough_gemm.h"

namespace specxai::rough {
namespace {

using Index = std::int64_t;

constexpr int tile_rows(int vectors) { return tile_sums / vectors; }

#include "cpu/task_outputs.inc"

// Every cell of the task's sites gets a slot, its live channels and the place of its pairs; returns how many they are.
Index find_cells(const GatherGemm<float>& s, const Task& task, const Scratch& scratch) {
  const Index segments = segments_of(s);
  Index n = 0;
  std::int32_t pairs = 0;
  for (Index r = s.run_begin[task.site_begin]; r < s.run_begin[task.site_end]; ++r) {
    const std::int32_t cell = s.run_cell[r];
    if (scratch.slot_of[cell] >= 0) continue;
    scratch.slot_of[cell] = static_cast<std::int32_t>(n);
    scratch.cells[n] = cell;
    std::uint8_t* order = scratch.order + n * segments * segment;
    std::uint8_t* counts = scratch.counts + n * segments * segment_words;
    std::memset(order, 0, static_cast<std::size_t>(segments * segment));
    std::memset(counts, 0, static_cast<std::size_t>(segments * segment_words));
    for (Index e = s.cell_begin[cell]; e < s.cell_begin[cell + 1]; ++e) {
      const Index w = s.in_column[e] / word;
      order[w * word + counts[w]++] = static_cast<std::uint8_t>(s.in_column[e] % word);
    }
    for (Index k = 0; k < segments; ++k) {
      scratch.begin[n * segments + k] = pairs;
      int count = 0;
      for (Index w = 0; w < segment_words; ++w) count += counts[k * segment_words + w];
      pairs += (count + 1) / 2;
    }
    ++n;
  }
  scratch.begin[n * segments] = pairs;
  return n;
}

// Numbers below it count as zero, so that their reciprocals stay finite.
constexpr float least = 1e-30f;
constexpr Index rows_ahead = 16;

// By column of the rows of `n` cells: what an integer stands for, and how many integers a unit is.
template <int V>
struct Scale {
  __m512 unit[V], per_unit[V];
};

template <int V>
void find_scale(const GatherGemm<float>& s, const float* z, Index stride, Index n, const Scratch& scratch,
                Scale<V>& scale) {
  // As bits, a number that is not finite is above all others, and makes its column so.
  __m512i most[V];
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), infinite = _mm512_set1_epi32(0x7f800000);
  for (int v = 0; v < V; ++v) most[v] = _mm512_setzero_si512();
  for (Index i = 0; i < n; ++i) {
    const std::int32_t cell = scratch.cells[i];
    for (Index e = s.cell_begin[cell]; e < s.cell_begin[cell + 1]; ++e) {
      const float* row = z + s.in_row[e] * stride;
      const float* ahead = z + s.in_row[e + rows_ahead < s.n_entries ? e + rows_ahead : e] * stride;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        __builtin_prefetch(ahead + v * lanes, 0, 3);
        most[v] = _mm512_max_epi32(most[v], _mm512_and_si512(_mm512_loadu_si512(row + v * lanes), magnitude));
      }
    }
  }
  for (int v = 0; v < V; ++v) {
    const __m512 largest = _mm512_castsi512_ps(most[v]);
    const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(least), _CMP_NLT_UQ);
    scale.per_unit[v] = _mm512_maskz_div_ps(some, _mm512_set1_ps(largest_input), largest);
    const __m512 unit = _mm512_maskz_mul_ps(some, largest, _mm512_set1_ps(1.0f / largest_input));
    const __mmask16 wild = _mm512_cmpge_epi32_mask(most[v], infinite);
    scale.unit[v] = _mm512_mask_mov_ps(unit, wild, _mm512_set1_ps(__builtin_nanf("")));
  }
}

// (low, high) 16 bits of the rounded rows
inline __m512i pair(const float* low, const float* high, __m512 per_unit, bool two) {
  const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(low), per_unit));
  const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(high), per_unit));
  const __mmask32 lows = 0x55555555u, highs = two ? ~lows : 0u;
  return _mm512_mask_mov_epi16(_mm512_maskz_mov_epi16(lows, a), highs, _mm512_slli_epi32(b, 16));
}

template <int V>
void round_inputs(const GatherGemm<float>& s, const float* z, Index stride, Index n, const Scratch& scratch,
                  const Scale<V>& scale) {
  const Index segments = segments_of(s);
  for (Index i = 0; i < n; ++i) {
    Index e = s.cell_begin[scratch.cells[i]];
    const Index end = s.cell_begin[scratch.cells[i] + 1];
    for (Index k = 0; k < segments; ++k) {
      std::int32_t* to = scratch.pairs + scratch.begin[i * segments + k] * (V * lanes);
      for (Index stop = e; e < end && s.in_column[e] < (k + 1) * segment; e = stop, to += V * lanes) {
        const bool two = e + 1 < end && s.in_column[e + 1] < (k + 1) * segment;
        stop = e + (two ? 2 : 1);
        const float* low = z + s.in_row[e] * stride;
        const float* high = z + s.in_row[stop - 1] * stride;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          _mm512_storeu_si512(to + v * lanes, pair(low + v * lanes, high + v * lanes, scale.per_unit[v], two));
        }
      }
    }
  }
}

// What a tile reads besides its outputs.
struct Inputs {
  const std::int32_t* pairs;
  const std::int32_t* begin;   // of a segment's pairs
  const std::uint8_t* order;
  const std::uint8_t* counts;
  const Piece* pieces;
  Index n;
};

// The live weights of M outputs, side by side as the inputs lie.
template <int M>
void pack_weights(const Inputs& inputs, const std::int16_t* w, const Index* columns, Index words,
                  std::int16_t* packed) {
  const std::int16_t* row[M];
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m) row[m] = w + columns[m];
  std::int16_t* next = packed;
  for (Index i = 0; i < inputs.n; ++i) {
    const Piece piece = inputs.pieces[i];
    const std::uint8_t* order = inputs.order + piece.segment * segment;
    const std::uint8_t* counts = inputs.counts + piece.segment * segment_words;
    std::int16_t* to = next;
    next += 2 * (inputs.begin[piece.segment + 1] - inputs.begin[piece.segment]);
    for (Index k = 0; k < words; ++k) {
      const __m512i from = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(order + k * word)));
      const Index at = piece.weight_at + k * word;
#pragma GCC unroll 24
      for (int m = 0; m < M; ++m) {
        _mm512_storeu_si512(to + m * weight_row, _mm512_permutexvar_epi16(from, _mm512_loadu_si512(row[m] + at)));
      }
      to += counts[k];
    }
    if (to == next) continue;
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) to[m * weight_row] = 0;  // the partner of an odd one
  }
}

// GCC 12 moves the intrinsic's sums through memory.
inline void add_products(__m512i pairs, __m512i weights, __m512i& sum) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(pairs), "v"(weights));
}

template <int M, int V>
void tile(const Inputs& inputs, const Weights& weights, const Index* columns, const Index* rows, const float* by_row,
          const Scale<V>& scale, Index words, float* y, bool accumulate, std::int16_t* packed) {
  pack_weights<M>(inputs, weights.weight, columns, words, packed);
  __m512i sum[M][V];
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sum[m][v] = _mm512_setzero_si512();
      __builtin_prefetch(y + rows[m] + v * lanes, 1, 3);
    }
  }
  const std::int16_t* w = packed;
  for (Index i = 0; i < inputs.n; ++i) {
    const Index first = inputs.begin[inputs.pieces[i].segment];
    const Index n = inputs.begin[inputs.pieces[i].segment + 1] - first;
    const std::int32_t* z = inputs.pairs + first * (V * lanes);
    for (Index p = 0; p < n; ++p) {
      __m512i in[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) in[v] = _mm512_loadu_si512(z + v * lanes);
#pragma GCC unroll 24
      for (int m = 0; m < M; ++m) {
        std::int32_t both;
        __builtin_memcpy(&both, w + m * weight_row, sizeof both);
        const __m512i a = _mm512_set1_epi32(both);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) add_products(in[v], a, sum[m][v]);
      }
      z += V * lanes;
      w += 2;
    }
  }
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m) {
    float* to = y + rows[m];
    const __m512 times = _mm512_set1_ps(by_row[m]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const __m512 value = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[m][v]), times), scale.unit[v]);
      _mm512_storeu_ps(to + v * lanes, accumulate ? _mm512_add_ps(_mm512_loadu_ps(to + v * lanes), value) : value);
    }
  }
}

template <int V>
using Tile = void (*)(const Inputs&, const Weights&, const Index*, const Index*, const float*, const Scale<V>&,
                      Index, float*, bool, std::int16_t*);

template <int V, int M = tile_rows(V)>
Tile<V> tile_for(Index rows) {
  if constexpr (M > 1) {
    if (rows < M) return tile_for<V, M - 1>(rows);
  }
  return tile<M, V>;
}

// Outputs of a site for V vectors of probes, from some of its pieces.
template <int V>
void outputs(const GatherGemm<float>& s, const Weights& weights, const Blocks<float>& blocks, Range range,
             const Inputs& inputs, Index probe, const Scale<V>& scale, Index words, bool accumulate,
             std::int16_t* packed) {
  constexpr Index most = tile_rows(V);
  for (Index o = range.begin; o < range.end;) {
    const Index rows = rows_of_tile(range.end - o, most);
    Index column[most], row[most];
    float by_row[most];
    for (Index m = 0; m < rows; ++m) {
      const Index c = s.out_column[o + m];
      column[m] = c * s.taps * s.pitch;
      by_row[m] = weights.scale[c];
      row[m] = s.out_row[o + m] * blocks.stride + probe;
    }
    tile_for<V>(rows)(inputs, weights, column, row, by_row, scale, words, blocks.output, accumulate, packed);
    o += rows;
  }
}

Index pairs_of(const Scratch& scratch, const Piece& piece) {
  return scratch.begin[piece.segment + 1] - scratch.begin[piece.segment];
}

// A site's pieces under the taps [tap, tap + task.taps); returns how many they are.
Index pieces_of(const GatherGemm<float>& s, Index site, const Task& task, Index tap, const Scratch& scratch) {
  const Index segments = segments_of(s);
  Index n = 0;
  for (Index r = s.run_begin[site]; r < s.run_begin[site + 1]; ++r) {
    if (s.run_tap[r] < tap || s.run_tap[r] >= tap + task.taps) continue;
    for (Index k = 0; k < segments; ++k) {
      const Piece piece{static_cast<std::int32_t>(scratch.slot_of[s.run_cell[r]] * segments + k),
                        static_cast<std::int32_t>(s.run_tap[r] * s.pitch + k * segment)};
      if (pairs_of(scratch, piece) > 0) scratch.pieces[n++] = piece;
    }
  }
  return n;
}

// How many of `n` pieces are multiplied at once: blocks of about equal depth.
Index taken_of(const Scratch& scratch, const Piece* pieces, Index n) {
  Index all = 0;
  for (Index i = 0; i < n; ++i) all += pairs_of(scratch, pieces[i]);
  const Index n_blocks = (all + most_pairs - 1) / most_pairs;
  Index pairs = 0, taken = 0;
  while (taken < n) {
    const Index more = pairs_of(scratch, pieces[taken]);
    if (taken > 0 && (pairs + more > most_pairs || (pairs + more / 2) * n_blocks > all)) break;
    pairs += more;
    ++taken;
  }
  return taken;
}

template <int V>
void task_outputs(const GatherGemm<float>& s, const Weights& weights, const Blocks<float>& blocks, const Task& task,
                  Index n_cells, Index probe, const Scratch& scratch) {
  const Index words = s.depth > segment ? segment_words : (s.depth + word - 1) / word;
  Scale<V> scale;
  find_scale(s, blocks.input + probe, blocks.stride, n_cells, scratch, scale);
  round_inputs(s, blocks.input + probe, blocks.stride, n_cells, scratch, scale);
  Index tap = 0;
  do {
    for (Index site = task.site_begin; site < task.site_end; ++site) {
      const Range range = outputs_of(s, site, task);
      if (range.begin == range.end) continue;
      const Index n = pieces_of(s, site, task, tap, scratch);
      bool accumulate = blocks.accumulate || tap > 0;
      if (accumulate && n == 0) continue;
      const Piece* pieces = scratch.pieces;
      do {  // once at least: a site without inputs is zero
        const Index taken = taken_of(scratch, pieces, scratch.pieces + n - pieces);
        const Inputs inputs{scratch.pairs, scratch.begin, scratch.order, scratch.counts, pieces, taken};
        outputs<V>(s, weights, blocks, range, inputs, probe, scale, words, accumulate, scratch.weight);
        accumulate = true;
        pieces += taken;
      } while (pieces < scratch.pieces + n);
    }
    tap += task.taps;
  } while (tap < s.taps);
}

void run(const GatherGemm<float>& s, const Weights& weights, const Blocks<float>& blocks, const Task& task,
         const Scratch& scratch) {
  const Index n = find_cells(s, task, scratch);
  for (Index probe = 0; probe < blocks.stride;) {
    const Index vectors = (blocks.stride - probe) / lanes, taken = vectors < tile_vectors ? vectors : tile_vectors;
    if (taken == 1) task_outputs<1>(s, weights, blocks, task, n, probe, scratch);
    else if (taken == 2) task_outputs<2>(s, weights, blocks, task, n, probe, scratch);
    else if (taken == 3) task_outputs<3>(s, weights, blocks, task, n, probe, scratch);
    else task_outputs<4>(s, weights, blocks, task, n, probe, scratch);
    probe += taken * lanes;
  }
  for (Index i = 0; i < n; ++i) scratch.slot_of[scratch.cells[i]] = -1;
}

inline __mmask16 rest(Index count) { return count < lanes ? static_cast<__mmask16>((1u << count) - 1) : 0xffff; }

float rounded(const float* from, Index count, std::int16_t* to) {
  __m512i most = _mm512_setzero_si512();
  for (Index i = 0; i < count; i += lanes) {
    const __m512i bits = _mm512_maskz_loadu_epi32(rest(count - i), from + i);
    most = _mm512_max_epi32(most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
  }
  const std::int32_t bits = _mm512_reduce_max_epi32(most);
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  const bool finite = bits < 0x7f800000;
  const float per_unit = finite && largest >= least ? largest_weight / largest : 0.0f;
  for (Index i = 0; i < count; i += lanes) {
    const __mmask16 some = rest(count - i);
    const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, from + i), _mm512_set1_ps(per_unit));
    _mm512_mask_cvtepi32_storeu_epi16(to + i, some, _mm512_cvtps_epi32(value));
  }
  if (!finite) return __builtin_nanf("");
  return per_unit > 0 ? largest / largest_weight : 0.0f;
}

}  // namespace

const Kernel kernel = run;
const RoundWeights round_weights = rounded;

}  // namespace specxai::rough
