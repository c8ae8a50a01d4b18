#include "cpu/rough_gemm.h"

#include <algorithm>

#include "common/threads.h"

namespace specxai {
namespace {

constexpr std::int64_t fewest_inputs = 8;     // of a cell, on average
constexpr std::int64_t fewest_products = 40;  // of an input that is rounded, as many as cost what that does
constexpr std::int64_t fewest_parts = 16;     // of a stage's sites: those of a task share their rounded inputs

template <class T>
std::vector<T> filled(std::int64_t count, T value = T()) {
  return std::vector<T>(static_cast<std::size_t>(count), value);
}

}  // namespace

bool has_rough() {
#ifdef SPECXAI_X86_SIMD
  __builtin_cpu_init();
  return active_level() == SimdLevel::avx512 && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

RoughGemm::RoughGemm(const GatherGemm<float>& stage, std::int64_t multiply_adds) : stage_(stage) {
  const GatherGemm<float>& s = stage;
  if (s.n_sites <= 1 || s.n_entries < std::max<std::int64_t>(1, fewest_inputs * s.n_cells)) return;
  tasks_ = tasks_of<std::int16_t>(s, columns_at_once<std::int16_t>(s), fewest_parts);
  const std::int64_t segments = rough::segments_of(s);
  std::int64_t rounded = 0;
  auto seen = filled<std::size_t>(s.n_cells, tasks_.size());
  for (std::size_t t = 0; t < tasks_.size(); ++t) {
    std::int64_t cells = 0, pairs = 0;
    for (std::int64_t site = tasks_[t].site_begin; site < tasks_[t].site_end; ++site) {
      most_pieces_ = std::max(most_pieces_, segments * (s.run_begin[site + 1] - s.run_begin[site]));
      for (std::int64_t r = s.run_begin[site]; r < s.run_begin[site + 1]; ++r) {
        const std::int32_t cell = s.run_cell[r];
        if (seen[cell] == t) continue;
        seen[cell] = t;
        ++cells;
        const std::int64_t inputs = s.cell_begin[cell + 1] - s.cell_begin[cell];
        pairs += inputs / 2 + segments;
        rounded += inputs;
      }
    }
    most_cells_ = std::max(most_cells_, cells);
    most_pairs_ = std::max(most_pairs_, pairs);
  }
  if (multiply_adds == 0 || multiply_adds < fewest_products * rounded) tasks_.clear();
}

// What a run holds: the rounded weights, which all stages together would hold at half of their size again, and every
// thread's scratch.  Allocated at once, since an exception must not leave a parallel region.
struct RoughGemm::Memory {
  const RoughGemm& gemm;
  std::int64_t per_output, probes, segments;
  Block weight, pairs;
  std::vector<float> scale;
  std::vector<std::int32_t> slot_of, cells, begin;
  std::vector<std::uint8_t> order, counts;
  std::vector<rough::Piece> pieces;
  std::vector<std::int16_t> tile_weight;

  Memory(const RoughGemm& g, std::int64_t stride, std::int64_t threads)
      : gemm(g),
        per_output(g.stage_.taps * g.stage_.pitch),
        probes(std::min(stride, rough::tile_vectors * rough::lanes)),
        segments(g.most_cells_ * rough::segments_of(g.stage_)),
        weight(sizeof(std::int16_t) * static_cast<std::size_t>(g.stage_.width * per_output + rough::segment)),
        pairs(sizeof(std::int32_t) * static_cast<std::size_t>(g.most_pairs_ * probes * threads)),
        scale(filled<float>(g.stage_.width)),
        slot_of(filled(g.stage_.n_cells * threads, -1)),
        cells(filled<std::int32_t>(g.most_cells_ * threads)),
        begin(filled<std::int32_t>((segments + 1) * threads)),
        order(filled<std::uint8_t>(segments * rough::segment * threads)),
        counts(filled<std::uint8_t>(segments * rough::segment_words * threads)),
        pieces(filled<rough::Piece>(g.most_pieces_ * threads)),
        tile_weight(filled<std::int16_t>(rough::tile_sums * rough::weight_row * threads)) {
    std::fill_n(weights() + g.stage_.width * per_output, rough::segment, std::int16_t{0});
  }

  std::int16_t* weights() const { return static_cast<std::int16_t*>(weight.data()); }

  rough::Scratch of(std::int64_t thread) {
    return {slot_of.data() + thread * gemm.stage_.n_cells,
            cells.data() + thread * gemm.most_cells_,
            order.data() + thread * segments * rough::segment,
            counts.data() + thread * segments * rough::segment_words,
            begin.data() + thread * (segments + 1),
            static_cast<std::int32_t*>(pairs.data()) + thread * gemm.most_pairs_ * probes,
            pieces.data() + thread * gemm.most_pieces_,
            tile_weight.data() + thread * rough::tile_sums * rough::weight_row};
  }
};

void RoughGemm::run(const Blocks<float>& blocks, std::int64_t multiply_adds) const {
#ifdef SPECXAI_X86_SIMD
  const GatherGemm<float>& s = stage_;
  const std::int64_t n_tasks = static_cast<std::int64_t>(tasks_.size());
  const int n_threads = thread_count(n_tasks, multiply_adds);
  Memory memory(*this, blocks.stride, n_threads);
  const rough::Weights weights{memory.weights(), memory.scale.data()};

#pragma omp parallel num_threads(n_threads)
  {
#pragma omp for schedule(static)
    for (std::int64_t o = 0; o < s.width; ++o) {
      const std::int64_t at = o * memory.per_output;
      memory.scale[o] = rough::round_weights(s.weight + at, memory.per_output, memory.weights() + at);
    }
    const rough::Scratch scratch = memory.of(thread_number());
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < n_tasks; ++i) rough::kernel(s, weights, blocks, tasks_[i], scratch);
  }
#else
  (void)blocks, (void)multiply_adds;
#endif
}

}  // namespace specxai
