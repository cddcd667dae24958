#pragma once
// What every CUDA kernel here leans on: launching, reading and writing packs, block sums, and the pointwise kernels.
// tests/emulator compiles this very text for the CPU: threads become fibers, a launch a loop.
#include "formula.h"
#include "tensor.h"
#if !defined(LOSSREG_EMULATE)
#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>

// Absent from a CPU-only torch, where nothing here is called; there in every torch that has CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace lossreg::cuda {

constexpr unsigned kThreads = 256;
constexpr int kPack = 4;             // elements a thread takes at once: 16 bytes of float
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
  if (error != cudaSuccess) throw std::runtime_error(std::string("lossreg: a CUDA launch failed: ") + cudaGetErrorString(error));
}
#else
struct Guard {
  explicit Guard(const Tensor&) {}
};
using emulator::launch;
#endif

__device__ inline int64_t global_thread() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t all_threads() {
  return int64_t(gridDim.x) * blockDim.x;
}

template <class T>
__device__ T read(const Operand& o, int64_t offset) {
  T value = T(1);
  if (o.data)
    with_storage(o.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      value = widen<T>(static_cast<const S*>(o.data)[offset]);
    });
  return value;
}
template <class T>
__device__ void write(const Operand& o, int64_t offset, T value) {
  with_storage(o.dtype, [&](auto* tag) {
    using S = std::remove_pointer_t<decltype(tag)>;
    static_cast<S*>(o.data)[offset] = Narrow<S>::from(value);
  });
}

template <class S>
struct alignas(sizeof(S) * kPack) Packed {
  S at[kPack];
};
// kPack elements from i on, in one load where the address allows.
template <class T>
__device__ void read_pack(const Operand& o, int64_t i, T (&x)[kPack]) {
  if (!o.data) {
    for (int j = 0; j < kPack; j++) x[j] = T(1);
    return;
  }
  with_storage(o.dtype, [&](auto* tag) {
    using S = std::remove_pointer_t<decltype(tag)>;
    const S* p = static_cast<const S*>(o.data) + i;
    if (reinterpret_cast<uintptr_t>(p) % sizeof(Packed<S>) == 0) {
      Packed<S> pack = *reinterpret_cast<const Packed<S>*>(p);
      for (int j = 0; j < kPack; j++) x[j] = widen<T>(pack.at[j]);
    } else {
      for (int j = 0; j < kPack; j++) x[j] = widen<T>(p[j]);
    }
  });
}
template <class T>
__device__ void write_pack(const Operand& o, int64_t i, const T (&x)[kPack]) {
  if (!o.data) return;
  with_storage(o.dtype, [&](auto* tag) {
    using S = std::remove_pointer_t<decltype(tag)>;
    S* p = static_cast<S*>(o.data) + i;
    if (reinterpret_cast<uintptr_t>(p) % sizeof(Packed<S>) == 0) {
      Packed<S> pack;
      for (int j = 0; j < kPack; j++) pack.at[j] = Narrow<S>::from(x[j]);
      *reinterpret_cast<Packed<S>*>(p) = pack;
    } else {
      for (int j = 0; j < kPack; j++) p[j] = Narrow<S>::from(x[j]);
    }
  });
}

// use(inputs, index, flat) for every element that is this thread's. `flat` elements are at their index in every
// operand; others are where Iteration::offsets says.
template <class T, int I, int N, class Use>
__device__ void each_element(const Iteration<N>& it, Use use) {
  bool flat = true;
  for (int k = 0; k < N; k++) flat = flat && (it.operand[k].flat || !it.operand[k].data);
  int64_t packs = it.numel / kPack;
  for (int64_t p = global_thread(); p < packs; p += all_threads()) {
    T x[I][kPack];
    int64_t offset[kPack][N];
    if (flat) {
      for (int k = 0; k < I; k++) read_pack(it.operand[k], p * kPack, x[k]);
    } else {
      for (int j = 0; j < kPack; j++) {
        it.offsets(p * kPack + j, offset[j]);
        for (int k = 0; k < I; k++) x[k][j] = read<T>(it.operand[k], offset[j][k]);
      }
    }
    use(x, p * kPack, kPack, flat, offset);
  }
  // the rest that fills no pack: one element a thread
  int64_t last = packs * kPack + global_thread();
  if (last < it.numel) {
    T x[I][kPack];
    int64_t offset[kPack][N];
    it.offsets(last, offset[0]);
    for (int k = 0; k < I; k++) x[k][0] = read<T>(it.operand[k], offset[0][k]);
    use(x, last, 1, false, offset);
  }
}

template <class T, int I, int O, class Body>
__global__ void __launch_bounds__(kThreads) map_kernel(Iteration<I + O> it, Body body) {
  each_element<T, I>(it, [&](const T(&x)[I][kPack], int64_t i, int n, bool flat, const int64_t(&offset)[kPack][I + O]) {
    T y[O][kPack];
    for (int j = 0; j < kPack; j++) {
      if (j >= n) break;
      T a[I], b[O];
      for (int k = 0; k < I; k++) a[k] = x[k][j];
      body(a, b);
      for (int k = 0; k < O; k++) y[k][j] = b[k];
    }
    for (int k = 0; k < O; k++) {
      const Operand& o = it.operand[I + k];
      if (flat)
        write_pack(o, i, y[k]);
      else if (o.data)
        for (int j = 0; j < n; j++) write(o, offset[j][I + k], y[k][j]);
    }
  });
}

// The sum over the block, in a fixed order: lanes by halves, then warps by halves. Valid in thread 0.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T warp_sums[32];
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (lane == 0) warp_sums[warp] = value;
  __syncthreads();
  if (warp == 0) {
    value = lane < warps ? warp_sums[lane] : T(0);
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  __syncthreads();  // before the array is used again
  return value;
}

template <class T, int I, class Body>
__global__ void __launch_bounds__(kThreads) sum_kernel(Iteration<I> it, Body body, double* partial) {
  double total = 0;
  each_element<T, I>(it, [&](const T(&x)[I][kPack], int64_t, int n, bool, const int64_t(&)[kPack][I]) {
    T sum = T(0);
    for (int j = 0; j < kPack; j++) {
      if (j >= n) break;
      T a[I], b[1];
      for (int k = 0; k < I; k++) a[k] = x[k][j];
      body(a, b);
      sum += b[0];
    }
    total += double(sum);
  });
  total = block_sum(total);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

struct Finish {
  double scale;
  bool divide;  // by the second sum
};
// One block: adds up the partial sums of N quantities, block after block, and writes the result.
template <int N>
__global__ void __launch_bounds__(kThreads) finish_sum(const double* partial, int64_t blocks, Finish finish, void* out,
                                                       DType dtype, double* normaliser) {
  double total[2] = {0, 0};
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x)
    for (int k = 0; k < N; k++) total[k] += partial[b * N + k];
  for (int k = 0; k < N; k++) total[k] = block_sum(total[k]);
  if (threadIdx.x != 0) return;
  if (normaliser) *normaliser = total[1];
  Operand o;
  o.data = out;
  o.dtype = dtype;
  if (out) write(o, 0, finish.divide ? total[0] / total[1] : total[0] * finish.scale);
}

}  // namespace lossreg::cuda
