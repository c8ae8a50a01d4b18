// What the processor can do at most: fused multiply-adds on registers alone.
#pragma once

#include <cstdint>

#include "common/simd_level.h"

namespace specxai {

// `rounds` times a fixed number of independent multiply-adds on every thread; returns how many operations that were, a
// multiply-add counted as two.  The caller takes the time.
template <class T>
double multiply_add(std::int64_t rounds, SimdLevel level);

template <class T>
using MultiplyAdd = std::int64_t (*)(std::int64_t rounds, T* sink);  // on one thread

}  // namespace specxai
