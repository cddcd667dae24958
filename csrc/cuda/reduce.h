#pragma once
// Reductions, in an order that depends on the sizes alone: within a block, and over all blocks.
#include "arrivals.h"
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
// gets it. K values of a thread at once wait for each other no longer than one.
template <int K, class Join, class T>
__device__ void block_join(T (&value)[K], T neutral, Join join) {
  __shared__ T of_warp[K][32];
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  auto join_lanes = [&] {
    for (int step = 16; step > 0; step /= 2)
      for (int k = 0; k < K; k++) value[k] = join(value[k], __shfl_xor_sync(0xffffffffu, value[k], step));
  };
  join_lanes();
  if (lane == 0)
    for (int k = 0; k < K; k++) of_warp[k][warp] = value[k];
  __syncthreads();
  for (int k = 0; k < K; k++) value[k] = lane < warps ? of_warp[k][lane] : neutral;
  join_lanes();
  __syncthreads();  // before the array is used again
}
template <class Join, class T>
__device__ T block_join(T value, T neutral, Join join) {
  T values[1] = {value};
  block_join(values, neutral, join);
  return values[0];
}
template <class T>
__device__ T block_sum(T value) {
  return block_join(value, T(0), Plus{});
}
// The sums of K numbers at once, for which the threads wait no longer than for one.
template <int K>
__device__ void block_sums(double (&x)[K]) {
  __shared__ double of_warp[K][32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  auto sum_lanes = [&] {
    LOSSREG_UNROLL
    for (int step = 16; step > 0; step /= 2) {
      LOSSREG_UNROLL
      for (int k = 0; k < K; k++) x[k] += __shfl_xor_sync(0xffffffffu, x[k], step);
    }
  };
  sum_lanes();
  LOSSREG_UNROLL
  for (int k = 0; k < K; k++)
    if (lane == 0) of_warp[k][warp] = x[k];
  __syncthreads();
  LOSSREG_UNROLL
  for (int k = 0; k < K; k++) x[k] = lane < warps ? of_warp[k][lane] : 0.0;
  sum_lanes();
  __syncthreads();  // before the array is used again
}

// The sum over the threads before this one, and in `all` that over all of them, in a fixed order: of pairs of ever more
// lanes the second adds what the first has, and then each warp what the ones before it have.
template <class T>
__device__ T block_sum_before(T value, T& all) {
  __shared__ T of_warp[32];
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  T before = T(0);
  for (unsigned step = 1; step < 32; step *= 2) {
    T other = __shfl_xor_sync(0xffffffffu, value, step);
    if (lane & step) before += other;
    value += other;
  }
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  T lower = lane < warp ? of_warp[lane] : T(0);
  all = lane < warps ? of_warp[lane] : T(0);
  for (int step = 16; step > 0; step /= 2) {
    lower += __shfl_xor_sync(0xffffffffu, lower, step);
    all += __shfl_xor_sync(0xffffffffu, all, step);
  }
  __syncthreads();  // before the array is used again
  return before + lower;
}

// The last parameter of a kernel that sums over all blocks: each thread of each block calls add() once with its K sums.
// The block that comes last adds up what all have left, in the order of their numbers, and calls finish(sums) once.
template <int K, class Finish>
struct BlockSums {
  double* partial;  // K of each block
  Arrivals arrivals;
  Finish finish;

  __device__ void add(const double (&of_thread)[K]) const {
    double sums[K];
    for (int k = 0; k < K; k++) sums[k] = of_thread[k];
    if (gridDim.x > 1) {
      for (int k = 0; k < K; k++) {
        double sum = block_sum(sums[k]);
        if (threadIdx.x == 0) partial[blockIdx.x * K + k] = sum;
        sums[k] = 0;
      }
      if (!is_last_block()) return;
      LOSSREG_UNROLL_BY(4)  // that many loads are under way at once
      for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x)
        for (int k = 0; k < K; k++) sums[k] += __ldcg(partial + b * K + k);
    }
    add_last(sums);
  }

  // A kernel whose blocks leave something else for the last one, by their threads 0, uses these two in place of add().
  __device__ bool is_last_block() const {
    __shared__ bool last;
    if (threadIdx.x == 0) last = arrivals.is_last(gridDim.x);
    __syncthreads();
    return last;
  }
  __device__ void add_last(const double (&of_thread)[K]) const {
    double sums[K];
    for (int k = 0; k < K; k++) sums[k] = block_sum(of_thread[k]);
    if (threadIdx.x == 0) finish(sums);
  }
};
// launch_kernel(sums) launches the kernel over so many blocks; `like` says on which device.
template <int K, class LaunchKernel, class Finish>
void sum_blocks(const Tensor& like, unsigned blocks, LaunchKernel launch_kernel, Finish finish) {
  Tensor memory = new_empty(like, {int64_t(blocks) * K + 1}, DType::float64);
  auto* partial = static_cast<double*>(memory.mutable_data_ptr());
  auto* word = reinterpret_cast<unsigned long long*>(partial + int64_t(blocks) * K);
  launch_kernel(BlockSums<K, Finish>{partial, {word, Arrivals::new_tag()}, finish});
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
