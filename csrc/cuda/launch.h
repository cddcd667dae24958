#pragma once
// What every CUDA kernel here leans on: launching, reading and writing packs, block sums, and the pointwise kernels.
// tests/kernels/emulator compiles this very text for the CPU: threads become fibers, a launch a loop.
#include "../base/tensor.h"
#include "../skeletons/formula.h"
#if !defined(LOSSREG_EMULATE)
#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>

// Absent from a CPU-only torch, where nothing here is called; there in every torch that has CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace lossreg::cuda {

constexpr unsigned kThreads = 256;
constexpr int kPack = 4;               // elements a thread takes at once: 16 bytes of float
constexpr unsigned kMaxBlocks = 2048;  // about 16 a multiprocessor on a large GPU; beyond, threads stride

// A function of the size alone: the order of a sum must not depend on the GPU's load.
inline unsigned blocks_for(int64_t n, int64_t per_thread) {
  int64_t wanted = (n + kThreads * per_thread - 1) / (kThreads * per_thread);
  return unsigned(std::max<int64_t>(1, std::min<int64_t>(wanted, kMaxBlocks)));
}

#if !defined(LOSSREG_EMULATE)
inline thread_local void* current_stream = nullptr;

// The tensor's device, and its current stream.
struct Guard {
  torch::stable::accelerator::DeviceGuard device;
  explicit Guard(const Tensor& t) : device(t.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &current_stream));
  }
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, const Arguments&... arguments) {
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(current_stream)>>>(Parameters(arguments)...);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("lossreg: a CUDA launch failed: ") + cudaGetErrorString(error));
}
#else
struct Guard {
  explicit Guard(const Tensor&) {}
};
using emulator::launch;
#endif

#if defined(__CUDACC__)
#define LOSSREG_NOINLINE __noinline__
#define LOSSREG_UNROLL _Pragma("unroll")  // what keeps a thread's array in registers
#else
#define LOSSREG_NOINLINE
#define LOSSREG_UNROLL
#endif

__device__ inline int64_t global_thread() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t all_threads() {
  return int64_t(gridDim.x) * blockDim.x;
}

// One element of any operand. Not inlined: it is a switch over ten dtypes, and fast paths do without. And no reference
// to the operand goes into the call: for that, a kernel copies all of its parameters into local memory.
template <class T>
__device__ LOSSREG_NOINLINE T read_at(void* data, DType dtype, int64_t offset) {
  Operand o;
  o.data = data;
  o.dtype = dtype;
  return get<T>(o, offset);
}
template <class T>
__device__ LOSSREG_NOINLINE void write_at(void* data, DType dtype, int64_t offset, T value) {
  Operand o;
  o.data = data;
  o.dtype = dtype;
  put(o, offset, value);
}
template <class T>
__device__ T read(const Operand& o, int64_t offset) {
  return read_at<T>(o.data, o.dtype, offset);
}
template <class T>
__device__ void write(const Operand& o, int64_t offset, T value) {
  write_at(o.data, o.dtype, offset, value);
}

template <class S>
struct alignas(sizeof(S) * kPack) Packed {
  S at[kPack];
};

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// A NaN stays.
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

// The threads of a block, as the bodies of Cuda::teams see them (csrc/cpu.h has the CPU's).
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
  __device__ T before(T value) const {
    return block_sum_before(value);
  }
  // body(k) for every k < n, shared out.
  template <class Body>
  __device__ void each(int64_t n, Body body) const {
    for (int64_t k = rank(); k < n; k += size()) body(k);
  }
  // The sum of body(k) over k < n. What the threads wrote before, all can read after.
  template <class Body>
  __device__ auto sum(int64_t n, Body body) const {
    decltype(body(n)) total = 0;
    for (int64_t k = rank(); k < n; k += size()) total += body(k);
    return sum(total);
  }
};
template <class Body>
__global__ void __launch_bounds__(kThreads) teams_kernel(int64_t n, Body body) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    body(i, Team{});
    __syncthreads();  // before the next one uses what this one wrote
  }
}
template <class Body>
__global__ void __launch_bounds__(kThreads) each_kernel(int64_t n, Body body) {
  for (int64_t i = global_thread(); i < n; i += all_threads()) body(i);
}
template <int K, class Body>
__global__ void __launch_bounds__(kThreads) total_kernel(int64_t n, Body body, double* partial) {
  double sums[K] = {};
  for (int64_t i = global_thread(); i < n; i += all_threads()) body(i, sums);
  for (int k = 0; k < K; k++) {
    double total = block_sum(sums[k]);
    if (threadIdx.x == 0) partial[blockIdx.x * K + k] = total;
  }
}
template <int K, class Finish>
__global__ void __launch_bounds__(kThreads) finish_total(const double* partial, int64_t blocks, Finish finish) {
  double sums[K] = {};
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x)
    for (int k = 0; k < K; k++) sums[k] += partial[b * K + k];
  for (int k = 0; k < K; k++) sums[k] = block_sum(sums[k]);
  if (threadIdx.x == 0) finish(sums);
}

struct Finish {
  double scale;
  bool divide;  // by the second sum
};
// One block: adds up the partial sums of N quantities, block after block, and writes the result.
template <int N, class Normaliser = double>
__global__ void __launch_bounds__(kThreads)
    finish_sum(const double* partial, int64_t blocks, Finish finish, void* out, DType dtype, Normaliser* normaliser) {
  double total[2] = {0, 0};
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x)
    for (int k = 0; k < N; k++) total[k] += partial[b * N + k];
  for (int k = 0; k < N; k++) total[k] = block_sum(total[k]);
  if (threadIdx.x != 0) return;
  if (normaliser) *normaliser = Normaliser(total[1]);
  Operand o;
  o.data = out;
  o.dtype = dtype;
  if (out) write(o, 0, finish.divide ? total[0] / total[1] : total[0] * finish.scale);
}

}  // namespace lossreg::cuda
