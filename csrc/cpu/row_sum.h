// Sparse sums of rows: depthwise convolutions, average pools, residual adds, seeds and results of a plan.
#pragma once

#include <cstdint>
#include <vector>

#include "common/simd_level.h"

namespace specxai {

//   output[to[e], :] (+)= scale[e] * input[from[e], :], over all e
//
// Rows in `empty` are written too, though no entry may name them: they become zero.
template <class T>
struct RowSum {
  std::int64_t n_entries;
  const std::int32_t* to;
  const std::int32_t* from;
  const T* scale;  // null for ones
  std::int64_t n_empty;
  const std::int32_t* empty;
};

// A depthwise convolution as such a sum: each output of a channel sums its channel's inputs under the taps.
//
//   output[outside[s, c], :] (+)= sum_t weight[c, t] * input[inside[neighbours[s, t], c], :]
//
// where -1 stands for a dead unit and for no neighbour.
template <class T>
struct Depthwise {
  std::int64_t n_inside, n_outside, taps, channels;  // positions
  const std::int32_t* inside;      // (n_inside, channels) rows
  const std::int32_t* outside;     // (n_outside, channels) rows, no two the same
  const std::int32_t* neighbours;  // (n_outside, taps) positions inside
  const T* weight;                 // (channels, taps)
};

// The same with the entries brought together by the row that they are summed in, in their order: row to[o] sums the
// entries [begin[o], begin[o + 1]).
template <class T>
struct SortedSum {
  std::int64_t n_outputs, n_entries;
  const std::int32_t* begin;
  const std::int32_t* to;
  const std::int32_t* from;
  const T* scale;
};

// What one call adds: the blocks.  A row holds n_probes numbers; the rest of an output row, up to its width, is set to
// zero.
template <class T>
struct Rows {
  const T* input;
  std::int64_t input_stride;
  T* output;
  std::int64_t output_stride, output_width, n_probes;
  bool accumulate;
};

// Throws std::invalid_argument unless the blocks hold the rows that are read and written, and the probes.
template <class T>
void check_blocks(const Rows<T>& rows, std::int64_t input_rows, std::int64_t rows_read, std::int64_t output_rows,
                  std::int64_t rows_written);

// One ISA's implementation of the outputs [first, last).
template <class T>
using RowSumKernel = void (*)(const SortedSum<T>& sum, const Rows<T>& rows, std::int64_t first, std::int64_t last);

// A checked sum; owns its arrays.
template <class T>
class RowSumStage {
 public:
  // Throws std::invalid_argument on a negative index.
  explicit RowSumStage(const RowSum<T>& sum);
  // Throws std::invalid_argument on any index out of range, and where two outputs share a row.
  explicit RowSumStage(const Depthwise<T>& tables);

  std::int64_t entries() const { return static_cast<std::int64_t>(from_.size()); }

  // Throws std::invalid_argument unless the blocks hold every row that is read and written.  The blocks may be one,
  // if no row is both read and written.  Equal arguments give equal bits, on any number of threads.
  void run(const Rows<T>& rows, std::int64_t input_rows, std::int64_t output_rows, SimdLevel level) const;

 private:
  std::vector<std::int32_t> begin_, from_, to_;
  std::vector<T> scale_;
  std::int64_t rows_read_ = 0, rows_written_ = 0;
};

}  // namespace specxai
