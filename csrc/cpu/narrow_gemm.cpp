#include "cpu/narrow_gemm.h"

#include <algorithm>
#include <utility>

#include "common/memory.h"
#include "common/threads.h"
#include "cpu/kernels.h"

namespace specxai {
namespace {

constexpr std::int64_t spread_cost = 8;  // of a vector of spread inputs, written and read, in multiplied vectors

// Vectors of weight_panel weights that either form multiplies for one probe.
template <class T>
std::pair<std::int64_t, std::int64_t> vectors(const GatherGemm<T>& s) {
  std::int64_t by_outputs = 0, by_inputs = spread_cost * s.n_cells * (s.pitch / weight_panel);
  for (std::int64_t site = 0; site < s.n_sites; ++site) {
    std::int64_t inputs = 0, panels = 0, panel = -1;
    const std::int64_t runs = s.run_begin[site + 1] - s.run_begin[site];
    for (std::int64_t r = s.run_begin[site]; r < s.run_begin[site + 1]; ++r) {
      inputs += s.cell_begin[s.run_cell[r] + 1] - s.cell_begin[s.run_cell[r]];
    }
    for (std::int64_t o = s.out_begin[site]; o < s.out_begin[site + 1]; ++o) {
      panels += s.out_column[o] / weight_panel != panel;
      panel = s.out_column[o] / weight_panel;
    }
    by_outputs += inputs * panels;
    by_inputs += runs * (s.pitch / weight_panel) * (s.out_begin[site + 1] - s.out_begin[site]);
  }
  return {by_outputs, by_inputs};
}

}  // namespace

template <class T>
NarrowGemm<T>::NarrowGemm(const GatherGemm<T>& stage)
    : stage_(stage), tasks_(tasks_of<T>(stage, task_columns)), can_by_inputs_(stage.pitch % weight_panel == 0) {
  const auto [by_outputs, by_inputs] = vectors(stage);
  // One site reads every weight once: laying them out would cost more than it saves.
  by_inputs_ = can_by_inputs_ && (stage.n_sites <= 1 || by_inputs < by_outputs);
}

template <class T>
void NarrowGemm<T>::lay_out_weights() const {
  const GatherGemm<T>& s = stage_;
  const std::int64_t n_panels = (s.width + weight_panel - 1) / weight_panel, lines = s.taps * s.depth;
  panels_.resize(static_cast<std::size_t>(n_panels * lines * weight_panel));  // zeros
  T* const panels = panels_.data();
#pragma omp parallel for schedule(static) num_threads(thread_count(n_panels, s.width * lines))
  for (std::int64_t panel = 0; panel < n_panels; ++panel) {
    const std::int64_t first = panel * weight_panel, last = std::min(s.width, first + weight_panel);
    for (std::int64_t o = first; o < last; ++o) {
      T* to = panels + first * lines + o % weight_panel;
      for (std::int64_t t = 0; t < s.taps; ++t) {
        const T* from = s.weight + (o * s.taps + t) * s.pitch;
        for (std::int64_t c = 0; c < s.depth; ++c, to += weight_panel) *to = from[c];
      }
    }
  }
}

template <class T>
void NarrowGemm<T>::spread(const Blocks<T>& blocks, T* to, std::int64_t lanes, int n_threads) const {
  const GatherGemm<T>& s = stage_;
  const std::int64_t stride = blocks.stride, cell_size = stride * s.pitch;
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t cell = 0; cell < s.n_cells; ++cell) {
    T* at = to + cell * cell_size;
    std::fill(at, at + cell_size, T(0));
    for (std::int64_t e = s.cell_begin[cell]; e < s.cell_begin[cell + 1]; ++e) {
      const T* from = blocks.input + s.in_row[e] * stride;
      T* lane = at + s.in_column[e] / lanes * lanes * stride + s.in_column[e] % lanes;
      for (std::int64_t p = 0; p < stride; ++p) lane[p * lanes] = from[p];
    }
  }
}

template <class T>
void NarrowGemm<T>::run(const Blocks<T>& blocks, std::int64_t work, bool may_spread, SimdLevel level) const {
  const Kernels<T>& kernel = kernels<T>(level);
  const std::int64_t spread_all = stage_.n_cells * blocks.stride * stage_.pitch;
  const bool through_inputs = may_spread ? by_inputs_ : can_by_inputs_ && stage_.n_sites <= 1;
  if (!through_inputs) std::call_once(laid_out_, [this] { lay_out_weights(); });
  const std::int64_t n_tasks = static_cast<std::int64_t>(tasks_.size());
  const int n_threads = thread_count(n_tasks, work);
  const Block scratch(through_inputs ? static_cast<std::size_t>(spread_all) * sizeof(T) : 0);
  if (through_inputs) {
    const std::int64_t lanes = kernel.vector_bytes / static_cast<std::int64_t>(sizeof(T));
    spread(blocks, static_cast<T*>(scratch.data()), lanes, n_threads);
  }
  const NarrowKernel<T> task = through_inputs ? kernel.narrow_by_inputs : kernel.narrow_by_outputs;
  const T* const laid_out = through_inputs ? static_cast<const T*>(scratch.data()) : panels_.data();

  // One after the other in the order of their weights, which a thread then finds in its cache.
#pragma omp parallel for schedule(dynamic, 1) num_threads(n_threads)
  for (std::int64_t i = 0; i < n_tasks; ++i) task(stage_, laid_out, blocks, tasks_[i]);
}

template class NarrowGemm<float>;
template class NarrowGemm<double>;

}  // namespace specxai
