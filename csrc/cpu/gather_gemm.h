// Gather-GEMM: a convolution or fully connected stage of a gated chain, over live units only, on a block of probes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common/simd_level.h"

namespace specxai {

// A stage is a list of sites (an output position and a group).  At site s, for its live outputs o in
// [out_begin[s], out_begin[s+1]),
//
//   output[out_row[o], :] (+)= sum_e weight(out_column[o], tap_e, in_column[e]) * input[in_row[e], :]
//
// over the live inputs e of the site's runs: run r is the entries of the cell run_cell[r] (an input position and a
// group), [cell_begin[cell], cell_begin[cell + 1]), all under tap run_tap[r].  Rows hold `stride` probes: a multiple of
// probe_unit, or 1, 2, 4 or 8 (cpu/narrow_gemm.h).  The adjoint is a stage of its own, with sites at the input
// positions and the transposed weights: no two sites ever write one row.
constexpr std::int64_t probe_unit = 16;

// weight(o, t, c) = weight[(o * taps + t) * pitch + c]: a tile reads whole lines of each of its outputs' weights, where
// an order by inputs would give a line to the few live ones of 16 outputs.
//
// Units whose weights fill a line, or a vector of the narrow kernels.
constexpr std::int64_t weight_panel = 16;

template <class T>
struct GatherGemm {
  std::int64_t n_sites, n_cells, n_runs, n_entries, n_outputs;
  const std::int32_t* run_begin;  // n_sites + 1
  const std::int32_t* run_cell;   // n_runs, and below
  const std::int32_t* run_tap;
  const std::int32_t* cell_begin;  // n_cells + 1
  const std::int32_t* in_row;  // n_entries
  const std::int32_t* in_column;
  const std::int32_t* out_begin;  // n_sites + 1
  const std::int32_t* out_row;    // n_outputs
  const std::int32_t* out_column;
  const T* weight;
  std::int64_t taps, depth, width, pitch;  // depth: inputs a tap, width: outputs
};

// What a stage is made of.  In the tables -1 stands for a dead unit, and for no neighbour under a tap.
template <class T>
struct GatherGemmTables {
  std::int64_t n_inside, n_outside, taps, groups;  // positions
  std::int64_t across;  // outside positions of a line of their grid: sites follow each other in squares of it
  std::int64_t depth, width, pitch;  // depth inputs a group, width outputs, pitch >= depth weights a tap
  const std::int32_t* inside;      // (n_inside, groups * depth) rows of the input
  const std::int32_t* outside;     // (n_outside, width) rows of the output, group by group
  const std::int32_t* neighbours;  // (n_outside, taps) positions inside
  const T* weight;                 // as above; zeros from depth to pitch
};

// What one call adds: the blocks.
template <class T>
struct Blocks {
  const T* input;
  T* output;
  std::int64_t stride;
  bool accumulate;
};

// Outputs [first, last) of the sites [site_begin, site_end).  A task goes through the taps a few at a time, and through
// its sites for each: weights that stay in the cache are read by one site after the other.
struct Task {
  std::int64_t first, last;
  std::int64_t site_begin, site_end;
  std::int64_t taps;  // at a time
};

// All of a stage's outputs, `columns` a task, and sites in `parts` or more; weights are of type W.  Where those are not
// all columns, the taps are so few at a time that their weights are task_bytes: what a second-level cache holds.
constexpr std::int64_t task_bytes = 768 << 10;
constexpr std::int64_t task_columns = 12 * weight_panel;
template <class W, class T>
std::vector<Task> tasks_of(const GatherGemm<T>& stage, std::int64_t columns, std::int64_t parts = 32);

// Weights that a third-level cache keeps beside everything else: one site after the other may read them all.
constexpr std::int64_t kept_bytes = 4 << 20;
// The columns of such a task.
template <class W, class T>
std::int64_t columns_at_once(const GatherGemm<T>& s) {
  const bool kept = s.width * s.pitch * s.taps * static_cast<std::int64_t>(sizeof(W)) <= kept_bytes;
  return kept ? (s.width > 0 ? s.width : 1) : task_columns;
}

// A thread's memory for the inputs of one site, and for those of the next that it asks for ahead.
struct Scratch {
  std::int64_t* input_at;
  std::int32_t* weight_at;
  std::int64_t* ahead_at;
};

// One ISA's implementation of a task.
template <class T>
using GatherGemmKernel = void (*)(const GatherGemm<T>& stage, const Blocks<T>& blocks, const Task& task,
                                  const Scratch& scratch);

template <class T>
class NarrowGemm;
class RoughGemm;

// A checked stage with its tasks; refers to the weights, which must outlive it, and owns everything else.
template <class T>
class GatherGemmStage {
 public:
  // Throws std::invalid_argument on any index out of range, and where two outputs share a row.
  explicit GatherGemmStage(const GatherGemmTables<T>& tables);
  ~GatherGemmStage();
  GatherGemmStage(const GatherGemmStage&) = delete;
  GatherGemmStage& operator=(const GatherGemmStage&) = delete;

  // `may_spread`: rows of 1 to 8 probes may be laid out once more (cpu/narrow_gemm.h).
  // Throws std::invalid_argument unless the blocks hold every row that the stage reads and writes.
  void run(const T* input, std::int64_t input_rows, T* output, std::int64_t output_rows, std::int64_t stride,
           bool accumulate, bool may_spread, SimdLevel level) const;

  // The same with factors of 16 bits where that pays (cpu/rough_gemm.h); float32 only.
  // Throws std::runtime_error unless has_rough().
  void run_rough(const T* input, std::int64_t input_rows, T* output, std::int64_t output_rows, std::int64_t stride,
                 bool accumulate) const;

  std::int64_t multiply_adds() const { return multiply_adds_; }  // of one probe

 private:
  void make_sites(const GatherGemmTables<T>& tables);
  void make_tasks();
  void check(std::int64_t input_rows, std::int64_t output_rows, std::int64_t stride, bool narrow) const;
  void run_tasks(GatherGemmKernel<T> kernel, const Blocks<T>& blocks) const;

  using Indices = std::vector<std::int32_t>;
  Indices run_begin_, run_cell_, run_tap_, cell_begin_, in_row_, in_column_, out_begin_, out_row_, out_column_;
  GatherGemm<T> stage_;  // of those
  mutable std::once_flag narrowed_;
  mutable std::unique_ptr<const NarrowGemm<T>> narrow_;  // made by the first narrow run
  mutable std::once_flag roughened_;
  mutable std::unique_ptr<const RoughGemm> rough_;  // by the first rough one
  std::vector<Task> tasks_;
  std::int64_t rows_read_ = 0, rows_written_ = 0, most_inputs_ = 0, multiply_adds_ = 0;
};

}  // namespace specxai
