// Which instruction set the kernels use: the best the CPU has, or the one named by SPECXAI_SIMD.
#pragma once

#include <string>
#include <vector>

namespace specxai {

enum class SimdLevel { scalar = 0, avx2 = 1, avx512 = 2 };

const char* name_of(SimdLevel level);

// Levels that were compiled in and that this CPU can run, lowest first; never empty.
const std::vector<SimdLevel>& supported_levels();

// Throws std::runtime_error on an unknown name, or on a level that this CPU or this build lacks.
SimdLevel parse_level(const std::string& name, const std::string& source);

// SPECXAI_SIMD if it is set, else the highest supported level; decided at the first call that succeeds.
SimdLevel active_level();

}  // namespace specxai
