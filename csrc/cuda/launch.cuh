// Launches of bodies (block.cuh) on the caller's device and stream; the emulation runs them on the spot.
#pragma once

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "common/checks.h"
#include "cuda/block.cuh"
#include "cuda/place.h"

#ifndef SPECXAI_CUDA_EMULATED
#include <cuda_runtime.h>
#endif

namespace specxai::cuda {

#ifdef SPECXAI_CUDA_EMULATED

template <class Body>
void launch(const Place&, Index x, Index y, Index z, const Body& body) {
  const Index blocks = x * y * z;
  const auto shared = std::make_unique<typename Body::Shared>();
  for (Index i = 0; i < blocks; ++i) {
    const Index at = backward() ? blocks - 1 - i : i;
    const Block<Body::threads> block{at % x, static_cast<int>(at / x % y), static_cast<int>(at / x / y)};
    std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(*shared));  // NaN, and no index, to who reads too early
    body(block, *shared);
  }
}

#else

template <class Body>
__global__ void __launch_bounds__(Body::threads, Body::blocks) run(const __grid_constant__ Body body) {
  __shared__ typename Body::Shared shared;
  const Block<Body::threads> block{blockIdx.x, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  body(block, shared);
}

inline void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  throw std::runtime_error("specxai._cuda: " + what + ": " + cudaGetErrorName(code) + " (" +
                           std::to_string(static_cast<int>(code)) + "), " + cudaGetErrorString(code));
}

// Makes a device current, and the one before again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "no current device");
    if (before_ != device) check(cudaSetDevice(device), "device " + std::to_string(device) + " cannot be used");
    changed_ = before_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class Body>
void launch(const Place& place, Index x, Index y, Index z, const Body& body) {
  if (x == 0 || y == 0 || z == 0) return;
  require(x < (Index{1} << 31) && y < (1 << 16) && z < (1 << 16),
          std::string("kernel ") + Body::name + " would take " + std::to_string(x) + " x " + std::to_string(y) + " x " +
              std::to_string(z) + " blocks, more than a launch has");
  const DeviceGuard guard(place.device);
  const dim3 grid(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
  run<Body><<<grid, Body::threads, 0, reinterpret_cast<cudaStream_t>(place.stream)>>>(body);
  check(cudaGetLastError(), std::string("kernel ") + Body::name + " on device " + std::to_string(place.device));
}

#endif

}  // namespace specxai::cuda
