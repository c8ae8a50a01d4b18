#include "cuda/gather_gemm.h"

#include "cuda/launch.cuh"

namespace specxai::cuda {
namespace {

constexpr int n_threads = 128;
constexpr int tile_out = 64;  // outputs of a block
constexpr int chunk = 16;     // inputs that are in shared memory at once, of which there are two such chunks

// A tile of tile_out live outputs of a list and `tile_probes` probes.  The inputs of a list, over all its taps, are
// taken a chunk at a time: while one is multiplied, the next one's numbers are on their way to registers, and the
// indices of the one after that to shared memory.
//
// tile_probes   64, 16 or 4
// lines         rows can be read sixteen bytes at a time
template <class T, int tile_probes, bool lines>
struct Gather {
  static constexpr int threads = n_threads, blocks = sizeof(T) == 4 ? 4 : 2;
  static constexpr const char* name = "gather_gemm";
  // A thread's part of the tile.
  static constexpr int own_out = tile_probes == 64 ? 8 : tile_probes == 16 ? 4 : 2;
  static constexpr int own_probes = tile_out * tile_probes / n_threads / own_out;
  static constexpr int across = tile_probes / own_probes;  // threads side by side along the probes
  // What a thread copies of a chunk.
  static constexpr int line = lines ? Line<T>::size : 1;
  static constexpr int row_lines = tile_probes / line;
  static constexpr int own_lines = (chunk * row_lines + n_threads - 1) / n_threads;
  static constexpr int own_weights = chunk * tile_out / n_threads;
  static_assert(tile_probes % line == 0 && own_out * own_probes * n_threads == tile_out * tile_probes);

  struct Shared {
    alignas(16) T weights[2][chunk][tile_out];
    alignas(16) T inputs[2][chunk][tile_probes];
    std::int32_t row[2][chunk], weight_row[2][chunk];  // -1 behind the last input
    std::int32_t out_row[tile_out], out_column[tile_out];
    std::int32_t tap_begin[most_taps + 1];  // inputs of the list before each tap
    std::int32_t tap_at[most_taps];         // where the cell's entries begin
    Sums<n_threads> sums;
  };

  struct Copied {
    T weights[own_weights];
    T inputs[own_lines][line];
  };

  GatherGemm<T> stage;
  const T* input;
  T* output;
  Index in_stride, out_stride;
  int panels, probes;
  bool accumulate;

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared& shared) const {
    const Index list = block.x / panels;
    const int first = stage.out_begin[list] + static_cast<int>(block.x % panels) * tile_out;
    const int last = stage.out_begin[list + 1];
    if (first >= last) return;  // all threads of the block
    const int inputs = count_taps(block, shared, list);
    block.phase([&](int thread) {
      for (int o = thread; o < tile_out; o += n_threads) {
        const bool lives = first + o < last;
        shared.out_row[o] = lives ? stage.out_row[first + o] : -1;
        shared.out_column[o] = lives ? stage.out_column[first + o] : -1;
      }
      find(shared, thread, list, 0, inputs);
    });
    Each<Copied, n_threads> copied;
    block.phase([&](int thread) {
      find(shared, thread, list, 1, inputs);
      fetch(shared, thread, block.y, 0, copied[thread]);
      put(shared, thread, 0, copied[thread]);
    });
    Each<T[own_out][own_probes], n_threads> total;
    block.phase([&](int thread) {
      SPECXAI_UNROLL
      for (int o = 0; o < own_out; ++o) {
        SPECXAI_UNROLL
        for (int p = 0; p < own_probes; ++p) total[thread][o][p] = 0;
      }
    });
    const int chunks = (inputs + chunk - 1) / chunk;
    for (int i = 0; i < chunks; ++i) {
      block.phase([&](int thread) {
        find(shared, thread, list, i + 2, inputs);
        if (i + 1 < chunks) fetch(shared, thread, block.y, (i + 1) % 2, copied[thread]);
        multiply(shared, thread, i % 2, total[thread]);
        if (i + 1 < chunks) put(shared, thread, (i + 1) % 2, copied[thread]);
      });
    }
    block.phase([&](int thread) { store(shared, thread, block.y, total[thread]); });
  }

  // Fills in tap_begin and tap_at; returns the inputs of the list.
  template <class B>
  SPECXAI_BODY int count_taps(B& block, Shared& shared, Index list) const {
    const int taps = static_cast<int>(stage.taps), own = (taps + n_threads - 1) / n_threads;
    block.phase([&](int thread) {
      int mine = 0;
      for (int t = thread * own; t < taps && t < (thread + 1) * own; ++t) {
        const Index near = stage.neighbours[list / stage.groups * taps + t];
        const Index cell = near * stage.groups + list % stage.groups;
        const int begin = near < 0 ? 0 : stage.in_begin[cell];
        shared.tap_at[t] = begin;
        shared.tap_begin[t] = mine;  // before this thread's sum is known
        mine += near < 0 ? 0 : stage.in_begin[cell + 1] - begin;
      }
      shared.sums.of[0][thread] = mine;
    });
    const int* sums = inclusive_sums(block, shared.sums);
    block.phase([&](int thread) {
      for (int t = thread * own; t < taps && t < (thread + 1) * own; ++t) {
        shared.tap_begin[t] += thread == 0 ? 0 : sums[thread - 1];
      }
      if (thread == 0) shared.tap_begin[taps] = sums[n_threads - 1];
    });
    return shared.tap_begin[taps];
  }

  // The rows of chunk i, by one thread each.
  SPECXAI_BODY void find(Shared& shared, int thread, Index list, int i, int inputs) const {
    if (thread >= chunk) return;
    const int e = i * chunk + thread;
    int row = -1, weight_row = -1;
    if (e < inputs) {
      int low = 0, high = static_cast<int>(stage.taps);  // tap_begin[low] <= e < tap_begin[high]
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        (shared.tap_begin[middle] <= e ? low : high) = middle;
      }
      const int entry = shared.tap_at[low] + e - shared.tap_begin[low];
      row = stage.in_row[entry];
      weight_row = static_cast<int>((list % stage.groups * stage.taps + low) * stage.depth) + stage.in_column[entry];
    }
    shared.row[i % 2][thread] = row;
    shared.weight_row[i % 2][thread] = weight_row;
  }

  // The numbers of the chunk whose rows are in `slot`; zeros where there is no row, output or probe.
  SPECXAI_BODY void fetch(const Shared& shared, int thread, int tile, int slot, Copied& copied) const {
    SPECXAI_UNROLL
    for (int k = 0; k < own_weights; ++k) {
      const int at = k * n_threads + thread, row = shared.weight_row[slot][at / tile_out];
      const int column = shared.out_column[at % tile_out];
      copied.weights[k] = row < 0 || column < 0 ? T(0) : stage.weight[row * stage.width + column];
    }
    SPECXAI_UNROLL
    for (int k = 0; k < own_lines; ++k) {
      const int at = k * n_threads + thread;
      const int row = at < chunk * row_lines ? shared.row[slot][at / row_lines] : -1;
      const int p = tile * tile_probes + at % row_lines * line;
      if (row < 0 || p >= probes) {
        SPECXAI_UNROLL
        for (int v = 0; v < line; ++v) copied.inputs[k][v] = 0;
        continue;
      }
      const T* from = input + row * in_stride + p;
      if constexpr (lines) {
        const Line<T> read = *reinterpret_cast<const Line<T>*>(from);
        SPECXAI_UNROLL
        for (int v = 0; v < line; ++v) copied.inputs[k][v] = read.values[v];
      } else {
        copied.inputs[k][0] = *from;
      }
    }
  }

  SPECXAI_BODY void put(Shared& shared, int thread, int slot, const Copied& copied) const {
    SPECXAI_UNROLL
    for (int k = 0; k < own_weights; ++k) {
      const int at = k * n_threads + thread;
      shared.weights[slot][at / tile_out][at % tile_out] = copied.weights[k];
    }
    SPECXAI_UNROLL
    for (int k = 0; k < own_lines; ++k) {
      const int at = k * n_threads + thread;
      if (at >= chunk * row_lines) break;
      SPECXAI_UNROLL
      for (int v = 0; v < line; ++v) {
        shared.inputs[slot][at / row_lines][at % row_lines * line + v] = copied.inputs[k][v];
      }
    }
  }

  SPECXAI_BODY void multiply(const Shared& shared, int thread, int slot, T (&total)[own_out][own_probes]) const {
    const int o0 = thread / across * own_out, p0 = thread % across * own_probes;
    SPECXAI_UNROLL
    for (int k = 0; k < chunk; ++k) {
      T w[own_out], z[own_probes];
      SPECXAI_UNROLL
      for (int o = 0; o < own_out; ++o) w[o] = shared.weights[slot][k][o0 + o];
      SPECXAI_UNROLL
      for (int p = 0; p < own_probes; ++p) z[p] = shared.inputs[slot][k][p0 + p];
      SPECXAI_UNROLL
      for (int o = 0; o < own_out; ++o) {
        SPECXAI_UNROLL
        for (int p = 0; p < own_probes; ++p) total[o][p] += w[o] * z[p];
      }
    }
  }

  SPECXAI_BODY void store(const Shared& shared, int thread, int tile, const T (&total)[own_out][own_probes]) const {
    const int o0 = thread / across * own_out, p0 = tile * tile_probes + thread % across * own_probes;
    SPECXAI_UNROLL
    for (int o = 0; o < own_out; ++o) {
      const Index row = shared.out_row[o0 + o];
      if (row < 0) continue;
      T* const to = output + row * out_stride + p0;
      SPECXAI_UNROLL
      for (int p = 0; p < own_probes; ++p) {
        if (p0 + p < probes) to[p] = total[o][p] + (accumulate ? to[p] : T(0));
      }
    }
  }
};

template <class T, int tile_probes>
void run(const GatherGemm<T>& stage, const T* input, Index in_stride, T* output, Index out_stride, Index probes,
         bool accumulate, bool lines, Place place) {
  const Index panels = ceil_div(stage.width, tile_out), blocks = stage.n_sites * stage.groups * panels;
  const Index tiles = ceil_div(probes, tile_probes);
  const int panels_of = static_cast<int>(panels), probes_of = static_cast<int>(probes);
  if (lines) {
    launch(place, blocks, tiles, 1, Gather<T, tile_probes, true>{stage, input, output, in_stride, out_stride, panels_of,
                                                                 probes_of, accumulate});
  } else {
    launch(place, blocks, tiles, 1, Gather<T, tile_probes, false>{stage, input, output, in_stride, out_stride,
                                                                  panels_of, probes_of, accumulate});
  }
}

}  // namespace

template <class T>
void gather_gemm(const GatherGemm<T>& stage, const T* input, Index in_stride, T* output, Index out_stride, Index probes,
                 bool accumulate, Place place) {
  if (probes == 0 || stage.width == 0) return;
  const bool lines = reinterpret_cast<std::uintptr_t>(input) % 16 == 0 && in_stride % Line<T>::size == 0 &&
                     probes % Line<T>::size == 0;
  const auto go = probes <= 4 ? run<T, 4> : probes <= 16 ? run<T, 16> : run<T, 64>;
  go(stage, input, in_stride, output, out_stride, probes, accumulate, lines, place);
}

template void gather_gemm<float>(const GatherGemm<float>&, const float*, Index, float*, Index, Index, bool, Place);
template void gather_gemm<double>(const GatherGemm<double>&, const double*, Index, double*, Index, Index, bool, Place);

}  // namespace specxai::cuda
