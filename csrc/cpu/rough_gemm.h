// The gather-GEMM of gather_gemm.h with factors of 16 bits, for passes that only seek a subspace.
//
// A task's inputs are rounded once to integers relative to the largest of their column, and lie two by two; weights are
// rounded relative to the largest of their output.  Products add up exactly in 32 bits, at twice the rate of float32,
// and become float32 again as they are written.  A column with a number that is not finite is NaN in the whole task.
// Where the largest input of a task's column, or the largest weight of an output, is below 1e-30, all of them count as
// zero: their scale would not fit float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/memory.h"
#include "cpu/gather_gemm.h"

namespace specxai {

// Whether this CPU and this build multiply 16-bit integers at twice the rate (AVX512-VNNI).
bool has_rough();

namespace rough {

// A cell's inputs are cut into segments of 256 channels, each padded to whole pairs.  The sum over segments that have
// no more pairs than one fits 32 bits, whatever the factors are.
constexpr std::int64_t word = 32, segment_words = 8, segment = word * segment_words, most_pairs = segment / 2;
constexpr std::int64_t largest_input = 4095, largest_weight = 2047;
static_assert(largest_input * largest_weight * segment <= INT32_MAX);

constexpr std::int64_t lanes = 16, tile_vectors = 4, tile_sums = 24;  // 29 of 32 registers, as in the float32 tile
// Room for an output's weights in a tile, and for a vector that is written in vain.
constexpr std::int64_t weight_row = segment + 2 * word;

// Internal: its copies for different instruction sets must not be merged.
template <class T>
static std::int64_t segments_of(const GatherGemm<T>& stage) {
  return (stage.depth + segment - 1) / segment;
}

// weight(o, t, c) = weight[(o * taps + t) * pitch + c] * scale[o]; may be read a segment past its end.
struct Weights {
  const std::int16_t* weight;
  const float* scale;
};

// A segment of one of a site's cells, under one tap.
struct Piece {
  std::int32_t segment;
  std::int32_t weight_at;  // from an output's first
};

// A thread's memory for one task.  Its cells have slots; segment k of a slot is number slot * segments + k.
struct Scratch {
  std::int32_t* slot_of;  // n_cells, all -1 between tasks
  std::int32_t* cells;    // by slot
  std::uint8_t* order;    // segment of each segment: by word its live channels, the others behind them being 0
  std::uint8_t* counts;   // segment_words of each segment: live channels of a word
  std::int32_t* begin;    // pairs before each segment, and in all
  std::int32_t* pairs;    // (pairs, probes): (low, high) 16 bits
  Piece* pieces;          // of one site
  std::int16_t* weight;   // of one tile
};

using Kernel = void (*)(const GatherGemm<float>& stage, const Weights& weights, const Blocks<float>& blocks,
                        const Task& task, const Scratch& scratch);
extern const Kernel kernel;
// Rounds `count` weights of one output and returns their scale.
using RoundWeights = float (*)(const float* from, std::int64_t count, std::int16_t* to);
extern const RoundWeights round_weights;

}  // namespace rough

// A stage's tasks for that kernel; refers to the stage.
class RoughGemm {
 public:
  RoughGemm(const GatherGemm<float>& stage, std::int64_t multiply_adds);

  // False where rounding costs what it saves: few inputs a cell, few outputs a site, or a single site, which reads each
  // weight once.
  bool pays() const { return !tasks_.empty(); }
  void run(const Blocks<float>& blocks, std::int64_t multiply_adds) const;

 private:
  struct Memory;

  const GatherGemm<float>& stage_;
  std::vector<Task> tasks_;
  std::int64_t most_cells_ = 0, most_pairs_ = 0, most_pieces_ = 0;  // of a task, a task, a site
};

}  // namespace specxai
