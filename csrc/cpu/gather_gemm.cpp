#include "cpu/gather_gemm.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/checks.h"
#include "common/indices.h"
#include "common/threads.h"
#include "cpu/kernels.h"
#include "cpu/rough_gemm.h"

namespace specxai {
namespace {

constexpr std::int64_t square = 8;  // positions a side

// Writes the live of `count` rows and their columns after the `n` that are there, and returns how many there are then.
// Without a branch, as liveness is random: so one place more than there are live ones is written.
std::int64_t pack_live(const std::int32_t* rows, std::int64_t count, std::int64_t first_column, std::int64_t n,
                       std::vector<std::int32_t>& row, std::vector<std::int32_t>& column) {
  for (std::int64_t c = 0; c < count; ++c) {
    row[n] = rows[c];
    column[n] = static_cast<std::int32_t>(first_column + c);
    n += rows[c] >= 0;
  }
  return n;
}

// The i-th position of a grid that is gone through square by square, line by line in each: windows that overlap are then
// read while a cache holds them.
std::int64_t in_squares(std::int64_t i, std::int64_t across, std::int64_t lines) {
  const std::int64_t strip = i / (square * across), high = std::min(square, lines - strip * square);
  const std::int64_t within = i - strip * square * across;
  const std::int64_t column = within / (square * high) * square, wide = std::min(square, across - column);
  const std::int64_t rest = within - column * high;
  return (strip * square + rest / wide) * across + column + rest % wide;
}

}  // namespace

template <class T>
GatherGemmStage<T>::GatherGemmStage(const GatherGemmTables<T>& tables) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  const GatherGemmTables<T>& t = tables;
  require(t.across > 0 && t.n_outside % t.across == 0, "across must divide the positions outside");
  require(t.groups > 0 && t.width % t.groups == 0, "groups must divide the outputs");
  const std::string pitch = "pitch = " + std::to_string(t.pitch);
  require(t.pitch >= t.depth, pitch + " is less than depth = " + std::to_string(t.depth));
  require(t.pitch == 0 || t.taps <= limit / t.pitch, "the weights of one output exceed 2^31");
  const std::int64_t cells = checked_area(t.n_inside, t.groups, "the input");
  const std::int64_t inputs = checked_area(cells, t.depth, "the input");
  const std::int64_t outputs = checked_area(t.n_outside, t.width, "the output");
  const std::int64_t taps = checked_area(t.n_outside, t.taps, "the neighbours");
  require(inputs < limit && outputs < limit && cells < limit && checked_area(taps, t.groups, "the runs") < limit,
          "a stage of 2^31 units or runs, or more");
  rows_read_ = 1 + check_range(t.inside, inputs, -1, limit, "inside");
  rows_written_ = check_distinct(t.outside, outputs, limit, "outside");
  check_range(t.neighbours, taps, -1, t.n_inside, "neighbours");
  make_sites(tables);
  stage_ = {static_cast<std::int64_t>(run_begin_.size()) - 1,
            static_cast<std::int64_t>(cell_begin_.size()) - 1,
            static_cast<std::int64_t>(run_cell_.size()),
            static_cast<std::int64_t>(in_row_.size()),
            static_cast<std::int64_t>(out_row_.size()),
            run_begin_.data(), run_cell_.data(), run_tap_.data(), cell_begin_.data(), in_row_.data(),
            in_column_.data(), out_begin_.data(), out_row_.data(), out_column_.data(), t.weight, t.taps, t.depth,
            t.width, t.pitch};
  make_tasks();
}

// Live inputs packed cell by cell; a site's runs are its neighbours' cells.
template <class T>
void GatherGemmStage<T>::make_sites(const GatherGemmTables<T>& t) {
  const std::int64_t cells = t.n_inside * t.groups, made = t.groups ? t.width / t.groups : 0;
  const auto live = [](const std::int32_t* rows, std::int64_t n) {
    return static_cast<std::size_t>(n - std::count(rows, rows + n, -1)) + 1;  // a place that is written in vain
  };
  in_row_.resize(live(t.inside, cells * t.depth));
  in_column_.resize(in_row_.size());
  cell_begin_.assign(static_cast<std::size_t>(cells) + 1, 0);
  std::int64_t n = 0;
  for (std::int64_t cell = 0; cell < cells; ++cell) {
    n = pack_live(t.inside + cell * t.depth, t.depth, 0, n, in_row_, in_column_);
    cell_begin_[cell + 1] = static_cast<std::int32_t>(n);
  }
  in_row_.resize(n);
  in_column_.resize(n);

  out_row_.resize(live(t.outside, t.n_outside * t.width));
  out_column_.resize(out_row_.size());
  run_begin_.push_back(0);
  out_begin_.push_back(0);
  n = 0;
  for (std::int64_t i = 0; i < t.n_outside; ++i) {
    const std::int64_t position = in_squares(i, t.across, t.n_outside / t.across);
    const std::int32_t* near = t.neighbours + position * t.taps;
    for (std::int64_t group = 0; group < t.groups; ++group) {
      n = pack_live(t.outside + position * t.width + group * made, made, group * made, n, out_row_, out_column_);
      if (n == out_begin_.back()) continue;
      for (std::int64_t tap = 0; tap < t.taps; ++tap) {
        if (near[tap] < 0) continue;
        const std::int64_t cell = near[tap] * t.groups + group;
        if (cell_begin_[cell + 1] == cell_begin_[cell]) continue;
        run_cell_.push_back(static_cast<std::int32_t>(cell));
        run_tap_.push_back(static_cast<std::int32_t>(tap));
      }
      run_begin_.push_back(static_cast<std::int32_t>(run_cell_.size()));
      out_begin_.push_back(static_cast<std::int32_t>(n));
    }
  }
  out_row_.resize(n);
  out_column_.resize(n);
}

template <class T>
void GatherGemmStage<T>::make_tasks() {
  const GatherGemm<T>& s = stage_;
  for (std::int64_t site = 0; site < s.n_sites; ++site) {
    std::int64_t inputs = 0;
    for (std::int64_t r = s.run_begin[site]; r < s.run_begin[site + 1]; ++r) {
      inputs += s.cell_begin[s.run_cell[r] + 1] - s.cell_begin[s.run_cell[r]];
    }
    most_inputs_ = std::max(most_inputs_, inputs);
    multiply_adds_ += inputs * (s.out_begin[site + 1] - s.out_begin[site]);
  }
  tasks_ = tasks_of<T>(s, columns_at_once<T>(s));
}

template <class W, class T>
std::vector<Task> tasks_of(const GatherGemm<T>& s, std::int64_t columns, std::int64_t parts) {
  const std::int64_t tap_bytes = std::min(columns, s.width) * s.pitch * static_cast<std::int64_t>(sizeof(W));
  const std::int64_t taps =
      columns < s.width ? std::max<std::int64_t>(1, task_bytes / std::max<std::int64_t>(1, tap_bytes)) : s.taps;
  const std::int64_t sites = std::clamp<std::int64_t>(s.n_sites / parts, 1, 64);
  std::vector<Task> tasks;
  for (std::int64_t o = 0; o < s.width; o += columns) {
    for (std::int64_t site = 0; site < s.n_sites; site += sites) {
      tasks.push_back({o, std::min(s.width, o + columns), site, std::min(s.n_sites, site + sites), taps});
    }
  }
  return tasks;
}

template <class T>
void GatherGemmStage<T>::check(std::int64_t input_rows, std::int64_t output_rows, std::int64_t stride,
                               bool narrow) const {
  require((stride > 0 && stride % probe_unit == 0) || (narrow && is_narrow(stride)),
          narrow ? "rows must hold 1, 2, 4, 8 or a multiple of 16 probes" : "rows must hold a multiple of 16 probes");
  require(input_rows >= rows_read_, "the input has " + std::to_string(input_rows) + " rows, the stage reads " +
                                        std::to_string(rows_read_));
  require(output_rows >= rows_written_, "the output has " + std::to_string(output_rows) + " rows, the stage writes " +
                                            std::to_string(rows_written_));
  checked_area(std::max(input_rows, output_rows), stride, "the block");
}

template <class T>
void GatherGemmStage<T>::run_tasks(GatherGemmKernel<T> kernel, const Blocks<T>& blocks) const {
  const std::int64_t n_tasks = static_cast<std::int64_t>(tasks_.size());
  const int n_threads = thread_count(n_tasks, multiply_adds_ * blocks.stride);
  // Allocated here, since an exception must not leave a parallel region.
  const std::size_t per_thread = static_cast<std::size_t>(most_inputs_);
  std::vector<std::int64_t> input_at(per_thread * n_threads), ahead_at(per_thread * n_threads);
  std::vector<std::int32_t> weight_at(per_thread * n_threads);

#pragma omp parallel num_threads(n_threads)
  {
    const std::size_t mine = per_thread * static_cast<std::size_t>(thread_number());
    const Scratch scratch{input_at.data() + mine, weight_at.data() + mine, ahead_at.data() + mine};
    // Sites cost unequal amounts; whoever computes a task, its sums have one order.
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < n_tasks; ++i) {
      kernel(stage_, blocks, tasks_[i], scratch);
    }
  }
}

template <class T>
void GatherGemmStage<T>::run(const T* input, std::int64_t input_rows, T* output, std::int64_t output_rows,
                             std::int64_t stride, bool accumulate, bool may_spread,
                             SimdLevel level) const {
  check(input_rows, output_rows, stride, true);
  if (is_narrow(stride) && level != SimdLevel::scalar) {
    std::call_once(narrowed_, [this] { narrow_ = std::make_unique<const NarrowGemm<T>>(stage_); });
    narrow_->run({input, output, stride, accumulate}, multiply_adds_ * stride, may_spread, level);
    return;
  }
  run_tasks(kernels<T>(level).gather_gemm, {input, output, stride, accumulate});
}

template <class T>
void GatherGemmStage<T>::run_rough(const T* input, std::int64_t input_rows, T* output, std::int64_t output_rows,
                                   std::int64_t stride, bool accumulate) const {
  if (!has_rough()) {
    throw std::runtime_error("this CPU or this build has no 16-bit products (AVX512-VNNI)");
  }
  check(input_rows, output_rows, stride, false);
  if constexpr (std::is_same_v<T, float>) {
    std::call_once(roughened_, [this] { rough_ = std::make_unique<const RoughGemm>(stage_, multiply_adds_); });
    if (rough_->pays()) rough_->run({input, output, stride, accumulate}, multiply_adds_ * stride);
    else run_tasks(kernels<T>(active_level()).gather_gemm, {input, output, stride, accumulate});
  } else {
    throw std::invalid_argument("specxai._native: only float32 blocks have rough products");
  }
}

template <class T>
GatherGemmStage<T>::~GatherGemmStage() = default;  // here, where NarrowGemm and RoughGemm are known

template std::vector<Task> tasks_of<float>(const GatherGemm<float>&, std::int64_t, std::int64_t);
template std::vector<Task> tasks_of<double>(const GatherGemm<double>&, std::int64_t, std::int64_t);
template std::vector<Task> tasks_of<std::int16_t>(const GatherGemm<float>&, std::int64_t, std::int64_t);
template class GatherGemmStage<float>;
template class GatherGemmStage<double>;

}  // namespace specxai
