#pragma once
// How many threads and blocks a kernel is launched with, and which of them a kernel's code runs in.
#include "device.h"

namespace lossreg::cuda {

constexpr unsigned kThreads = 256;     // of a block
constexpr unsigned kMaxBlocks = 2048;  // about 16 a multiprocessor on a large GPU; beyond, threads stride

// A function of the size alone: the order of a sum must not depend on the GPU's load.
inline unsigned blocks_for(int64_t n, int64_t per_thread) {
  int64_t wanted = (n + kThreads * per_thread - 1) / (kThreads * per_thread);
  return unsigned(std::max<int64_t>(1, std::min<int64_t>(wanted, kMaxBlocks)));
}

__device__ inline int64_t global_thread() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t all_threads() {
  return int64_t(gridDim.x) * blockDim.x;
}

}  // namespace lossreg::cuda
