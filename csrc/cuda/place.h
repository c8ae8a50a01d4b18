// Where a kernel runs: the caller's device and stream.
#pragma once

#include <cstdint>

namespace specxai::cuda {

struct Place {
  int device;
  std::uintptr_t stream;  // a cudaStream_t
};

}  // namespace specxai::cuda
