#pragma once
// How many threads and blocks a kernel is launched with, and which of them a kernel's code runs in.
#include "device.h"

namespace lossreg::cuda {

// Of a block. A kernel whose bounds name a number of blocks besides, which a multiprocessor is to have room for, lets
// ptxas take as many registers as they leave; else it aims at more blocks, and spills what does not fit.
constexpr unsigned kThreads = 256;
constexpr unsigned kMaxBlocks = 2048;  // about 16 a multiprocessor on a large GPU; beyond, threads stride

// A function of the size alone: the order of a sum must not depend on the GPU's load.
inline unsigned blocks_for(int64_t n, int64_t per_thread) {
  int64_t wanted = (n + kThreads * per_thread - 1) / (kThreads * per_thread);
  return unsigned(std::max<int64_t>(1, std::min<int64_t>(wanted, kMaxBlocks)));
}

// Where a block takes `at_once` elements at once, so often do blocks take some.
inline int64_t rounds_for(int64_t n, int64_t at_once) {
  return (n + at_once - 1) / at_once;
}
// The blocks that share such rounds out where they sum, a function of the size alone as well. Each has as many rounds,
// and few, so that the last ones don't leave a GPU half empty for long.
inline unsigned blocks_of_sum(int64_t rounds, int64_t most = 2048) {
  int64_t of_block = std::max<int64_t>(rounds_for(rounds, most), 1);
  return unsigned(std::max<int64_t>(rounds_for(rounds, of_block), 1));
}

__device__ inline int64_t global_thread() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t all_threads() {
  return int64_t(gridDim.x) * blockDim.x;
}

}  // namespace lossreg::cuda
