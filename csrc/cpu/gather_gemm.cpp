#include "cpu/gather_gemm.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/checks.h"
#include "common/indices.h"
#include "common/threads.h"

namespace specxai {
namespace {

// Outputs of one task: enough tiles to share the list of inputs, a multiple of every tile's height.
constexpr std::int32_t task_outputs = 96;

template <class T>
GatherGemmKernel<T> kernel_for(SimdLevel level) {
  constexpr bool f32 = std::is_same_v<T, float>;
#ifdef SPECXAI_X86_SIMD
  if constexpr (f32) {
    if (level == SimdLevel::avx512) return avx512::gather_gemm_f32;
    if (level == SimdLevel::avx2) return avx2::gather_gemm_f32;
  } else {
    if (level == SimdLevel::avx512) return avx512::gather_gemm_f64;
    if (level == SimdLevel::avx2) return avx2::gather_gemm_f64;
  }
#endif
  (void)level;
  if constexpr (f32) return scalar::gather_gemm_f32;
  else return scalar::gather_gemm_f64;
}

#ifdef SPECXAI_X86_SIMD
Bf16 rounded(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<Bf16>((bits + 0x8000) >> 16);
}
#endif

}  // namespace

bool has_bf16() {
#ifdef SPECXAI_X86_SIMD
  __builtin_cpu_init();
  return active_level() == SimdLevel::avx512 && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512bw");
#else
  return false;
#endif
}

template <class T>
GatherGemmStage<T>::GatherGemmStage(const GatherGemm<T>& stage) : stage_(stage) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  const GatherGemm<T>& s = stage_;
  require(s.n_sites < limit && s.n_runs < limit && s.n_entries < limit && s.n_outputs < limit,
          "a stage of more than 2^31 sites, runs or rows");
  require(s.depth == 0 || s.taps <= limit / weight_panel / s.depth, "the weights of one output panel exceed 2^31");
  check_offsets(s.run_begin, s.n_sites, s.n_runs, "run_begin");
  check_offsets(s.out_begin, s.n_sites, s.n_outputs, "out_begin");
  check_range(s.run_tap, s.n_runs, s.taps, "run_tap");
  check_range(s.in_column, s.n_entries, s.depth, "in_column");
  check_range(s.out_column, s.n_outputs, s.width, "out_column");
  rows_read_ = 1 + check_range(s.in_row, s.n_entries, limit, "in_row");
  rows_written_ = check_distinct(s.out_row, s.n_outputs, limit, "out_row");
  for (std::int64_t r = 0; r < s.n_runs; ++r) {
    require(s.run_entry[r] >= 0 && s.run_count[r] >= 0 && s.run_entry[r] <= s.n_entries - s.run_count[r],
            "run " + std::to_string(r) + " reaches beyond the entries");
  }
  for (std::int64_t site = 0; site < s.n_sites; ++site) {
    std::int64_t inputs = 0;
    for (std::int64_t r = s.run_begin[site]; r < s.run_begin[site + 1]; ++r) inputs += s.run_count[r];
    most_inputs_ = std::max(most_inputs_, inputs);
    const std::int32_t begin = s.out_begin[site], end = s.out_begin[site + 1];
    multiply_adds_ += inputs * (end - begin);
    for (std::int32_t o = begin; o < end; o += task_outputs) {
      tasks_.push_back({static_cast<std::int32_t>(site), o, std::min(end, o + task_outputs)});
    }
  }
}

template <class T>
void GatherGemmStage<T>::check(std::int64_t input_rows, std::int64_t output_rows, std::int64_t stride) const {
  require(stride > 0 && stride % probe_unit == 0, "rows must hold a multiple of 16 probes");
  require(input_rows >= rows_read_, "the input has " + std::to_string(input_rows) + " rows, the stage reads " +
                                        std::to_string(rows_read_));
  require(output_rows >= rows_written_, "the output has " + std::to_string(output_rows) + " rows, the stage writes " +
                                            std::to_string(rows_written_));
  checked_area(std::max(input_rows, output_rows), stride, "the block");
}

template <class T>
template <class W>
void GatherGemmStage<T>::run_tasks(GatherGemmKernel<T, W> kernel, const W* weight, const Blocks<T>& blocks) const {
  const std::int64_t n_tasks = static_cast<std::int64_t>(tasks_.size());
  const int n_threads = thread_count(n_tasks, multiply_adds_ * blocks.stride);
  const int chunk = static_cast<int>(std::clamp<std::int64_t>(n_tasks / (16 * n_threads), 1, 32));
  // Allocated here, since an exception must not leave a parallel region.
  const std::size_t per_thread = static_cast<std::size_t>(most_inputs_);
  std::vector<std::int64_t> input_at(per_thread * n_threads);
  std::vector<std::int32_t> weight_at(per_thread * n_threads);

#pragma omp parallel num_threads(n_threads)
  {
    const int t = thread_number();
    // Sites cost unequal amounts; whoever computes a task, its sums have one order.
#pragma omp for schedule(dynamic, chunk)
    for (std::int64_t i = 0; i < n_tasks; ++i) {
      kernel(stage_, weight, blocks, tasks_[i], input_at.data() + t * per_thread, weight_at.data() + t * per_thread);
    }
  }
}

template <class T>
void GatherGemmStage<T>::run(const T* input, std::int64_t input_rows, T* output, std::int64_t output_rows,
                             std::int64_t stride, bool accumulate, SimdLevel level) const {
  check(input_rows, output_rows, stride);
  run_tasks<T>(kernel_for<T>(level), stage_.weight, {input, output, stride, accumulate});
}

template <class T>
void GatherGemmStage<T>::run_bf16(const T* input, std::int64_t input_rows, T* output, std::int64_t output_rows,
                                  std::int64_t stride, bool accumulate) const {
  if (!has_bf16()) throw std::runtime_error("this CPU or this build has no bfloat16 products (AVX512-BF16)");
  check(input_rows, output_rows, stride);
#ifdef SPECXAI_X86_SIMD
  if constexpr (std::is_same_v<T, float>) {
    std::call_once(rounded_, [this] {
      const std::int64_t panels = (stage_.width + weight_panel - 1) / weight_panel;
      weight_bf16_.resize(static_cast<std::size_t>(panels * stage_.taps * stage_.depth * weight_panel));
      std::transform(stage_.weight, stage_.weight + weight_bf16_.size(), weight_bf16_.begin(), rounded);
    });
    run_tasks<Bf16>(bf16::gather_gemm, weight_bf16_.data(), {input, output, stride, accumulate});
    return;
  }
#endif
  throw std::invalid_argument("specxai._native: only float32 blocks have bfloat16 products");
}

template class GatherGemmStage<float>;
template class GatherGemmStage<double>;

}  // namespace specxai
