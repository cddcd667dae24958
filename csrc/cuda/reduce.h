#pragma once
// Reductions, in an order that depends on the sizes alone: within a block, and over all blocks.
#include "memory.h"

namespace lossreg::cuda {

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// A NaN wins over every number.
struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};
// The values of all threads of the block joined, in a fixed order: lanes by halves, then warps by halves. Every thread
// gets it.
template <class Join, class T>
__device__ T block_join(T value, T neutral, Join join) {
  __shared__ T of_warp[32];
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  value = lane < warps ? of_warp[lane] : neutral;
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
  __syncthreads();  // before the array is used again
  return value;
}
template <class T>
__device__ T block_sum(T value) {
  return block_join(value, T(0), Plus{});
}

// The sum over the threads before this one, in a fixed order: each step adds what lies twice as far back.
template <class T>
__device__ T block_sum_before(T value) {
  __shared__ T sum[kThreads];
  T inclusive = value;
  for (unsigned step = 1; step < blockDim.x; step *= 2) {
    sum[threadIdx.x] = inclusive;
    __syncthreads();
    if (threadIdx.x >= step) inclusive += sum[threadIdx.x - step];
    __syncthreads();  // before the array is written again
  }
  return inclusive - value;
}

// A sum over all blocks takes two kernels. The blocks of the first leave their K sums in `partial`; the second is one
// block, which adds these up and calls finish(sums) once.
template <int K>
__device__ void leave_sums(const double (&sums)[K], double* partial) {
  for (int k = 0; k < K; k++) {
    double sum = block_sum(sums[k]);
    if (threadIdx.x == 0) partial[blockIdx.x * K + k] = sum;
  }
}
template <int K, class Finish>
__global__ void __launch_bounds__(kThreads) finish_sums(const double* partial, int64_t blocks, Finish finish) {
  double sums[K] = {};
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x)
    for (int k = 0; k < K; k++) sums[k] += partial[b * K + k];
  for (int k = 0; k < K; k++) sums[k] = block_sum(sums[k]);
  if (threadIdx.x == 0) finish(sums);
}
// launch_first(partial) launches the first kernel; `like` says on which device.
template <int K, class LaunchFirst, class Finish>
void sum_blocks(const Tensor& like, unsigned blocks, LaunchFirst launch_first, Finish finish) {
  Tensor partial = new_empty(like, {int64_t(blocks) * K}, DType::float64);
  auto* sums = static_cast<double*>(partial.mutable_data_ptr());
  launch_first(sums);
  launch(finish_sums<K, Finish>, 1u, kThreads, sums, int64_t(blocks), finish);
}

// The ends of such a sum. A result without data is none: a loss that is not reduced.
struct WriteScaled {
  void* result;
  DType dtype;
  double scale;
  __device__ void operator()(const double (&sums)[1]) const { write_at(result, dtype, 0, sums[0] * scale); }
};
template <class Normaliser>
struct WriteLoss {
  void* result;
  DType dtype;
  bool mean;
  Normaliser* normaliser;  // where the second sum is kept; null: nowhere
  __device__ void operator()(const double (&sums)[2]) const {
    if (normaliser) *normaliser = Normaliser(sums[1]);
    if (result) write_at(result, dtype, 0, mean ? sums[0] / sums[1] : sums[0]);
  }
};

}  // namespace lossreg::cuda
