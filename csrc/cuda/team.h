#pragma once
// The kernels over bodies that are written out once for all backends: see Backend::each, teams and total.
#include "reduce.h"

namespace lossreg::cuda {

// A warp of a block, as a team of its own.
struct Warp {
  __device__ int64_t rank() const { return threadIdx.x % 32; }
  __device__ int64_t size() const { return 32; }
  template <class T>
  __device__ T sum(T value) const {
    return join(value, Plus{});
  }
  template <class T>
  __device__ T max(T value) const {
    return join(value, Larger{});
  }

 private:
  template <class T, class Join>
  __device__ static T join(T value, Join join) {
    for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
  }
};

// The team that is a block of threads. cpu/team.h has the team of one thread.
struct Team {
  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return blockDim.x; }
  __device__ void sync() const { __syncthreads(); }
  template <class T>
  __device__ T sum(T value) const {
    return block_sum(value);
  }
  template <class T>
  __device__ T max(T value) const {
    return block_join(value, T(-INFINITY), Larger{});
  }
  template <class T>
  __device__ T before(T value, T& all) const {
    return block_sum_before(value, all);
  }
  // body(k) for every k < n, shared out.
  template <class Body>
  __device__ void each(int64_t n, Body body) const {
    for (int64_t k = rank(); k < n; k += size()) body(k);
  }
  // body(k, part) for every k < n, shared out to warps.
  template <class Body>
  __device__ void each_part(int64_t n, Body body) const {
    for (int64_t k = rank() / 32; k < n; k += size() / 32) body(k, Warp{});
  }
  // The sum of body(k) over k < n. What the threads wrote before, all can read after.
  template <class Body>
  __device__ auto sum(int64_t n, Body body) const {
    decltype(body(n)) total = 0;
    for (int64_t k = rank(); k < n; k += size()) total += body(k);
    return sum(total);
  }
  // The sums of body(i, k), one for each k < K.
  template <int K, class T, class Body>
  __device__ void sums(int64_t n, T (&out)[K], Body body) const {
    for (int k = 0; k < K; k++) out[k] = T(0);
    for (int64_t i = rank(); i < n; i += size())
      for (int k = 0; k < K; k++) out[k] += body(i, k);
    block_join(out, T(0), Plus{});
  }
  // Shared memory: the blocks of few samples don't have to share it, and of many four still fit a multiprocessor.
  static constexpr int64_t kMemory = 44 << 10;
  __device__ double* memory() const {
    __shared__ double bytes[kMemory / 8];
    return bytes;
  }
};
// The bound of one block a multiprocessor lets ptxas take as many registers as a body needs. Without it, it aims at
// more blocks and spills a few.
template <class Body>
__global__ void __launch_bounds__(kThreads, 1) teams_kernel(int64_t n, Body body) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    body(i, Team{});
    __syncthreads();  // before the next one uses what this one wrote
  }
}
template <class Body>
__global__ void __launch_bounds__(kThreads, 1) each_kernel(int64_t n, Body body) {
  for (int64_t i = global_thread(); i < n; i += all_threads()) body(i);
}
template <int K, class Body, class Finish>
__global__ void __launch_bounds__(kThreads, 1) total_kernel(int64_t n, Body body, BlockSums<K, Finish> sums) {
  double of_thread[K] = {};
  for (int64_t i = global_thread(); i < n; i += all_threads()) body(i, of_thread);
  sums.add(of_thread);
}

}  // namespace lossreg::cuda
