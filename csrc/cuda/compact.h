// Ordered lists of what is live, without a word of the host: the number found stays on the device.
#pragma once

#include <cstdint>

#include "cuda/place.h"

namespace specxai::cuda {

// Numbers of int32 that `compact` works in.
std::int64_t compact_workspace(std::int64_t n);

// The live ones among n < 2^31 numbers, in order: those of a mask that are not 0, those of a table that are not -1.
// Null for what is not wanted.
struct Found {
  std::int32_t* at;      // (n,) room for where each lives
  std::int32_t* rank;    // (n,) the number of live ones before each live one, -1 for the others
  std::int32_t* row;     // (n,) room for the table's values
  std::int32_t* column;  // (n,) room for their columns, in lines of `width`
  std::int32_t* begin;   // (n / width + 1,) the live ones before each line, and in all
  std::int32_t* count;   // (1,)
};

void compact(const std::uint8_t* mask, std::int64_t n, const Found& found, std::int32_t* workspace, Place place);
void compact(const std::int32_t* table, std::int64_t n, std::int64_t width, const Found& found,
             std::int32_t* workspace, Place place);

}  // namespace specxai::cuda
