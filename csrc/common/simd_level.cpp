#include "common/simd_level.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace specxai {
namespace {

std::vector<SimdLevel> detect() {
  std::vector<SimdLevel> levels{SimdLevel::scalar};
#ifdef SPECXAI_X86_SIMD
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) levels.push_back(SimdLevel::avx2);
  if (avx2 && __builtin_cpu_supports("avx512f")) levels.push_back(SimdLevel::avx512);
#endif
  return levels;
}

std::string supported_names() {
  std::string names;
  for (SimdLevel level : supported_levels()) names += (names.empty() ? "" : ", ") + std::string(name_of(level));
  return names;
}

}  // namespace

const char* name_of(SimdLevel level) {
  switch (level) {
    case SimdLevel::avx2: return "avx2";
    case SimdLevel::avx512: return "avx512";
    default: return "scalar";
  }
}

const std::vector<SimdLevel>& supported_levels() {
  static const std::vector<SimdLevel> levels = detect();
  return levels;
}

SimdLevel parse_level(const std::string& name, const std::string& source) {
  for (SimdLevel level : {SimdLevel::scalar, SimdLevel::avx2, SimdLevel::avx512}) {
    if (name != name_of(level)) continue;
    const auto& levels = supported_levels();
    if (std::find(levels.begin(), levels.end(), level) != levels.end()) return level;
    throw std::runtime_error(source + " asks for '" + name +
                             "', which this CPU or this build cannot run; it can run: " + supported_names());
  }
  throw std::runtime_error(source + " is '" + name + "'; expected one of scalar, avx2, avx512");
}

SimdLevel active_level() {
  static const SimdLevel level = [] {
    const char* forced = std::getenv("SPECXAI_SIMD");
    return forced && *forced ? parse_level(forced, "SPECXAI_SIMD") : supported_levels().back();
  }();
  return level;
}

}  // namespace specxai
