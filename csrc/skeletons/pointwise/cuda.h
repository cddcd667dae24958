#pragma once
// The pointwise kernels on CUDA: packs of elements, each thread for itself, where memory holds one dtype in order; else
// tiles that a block reads together.
#include "../../cuda/reduce.h"
#include "../../cuda/stage.h"
#include "cuda_many.h"

namespace lossreg::cuda {

// Packs: every operand holds S, in the order of the index space, on a pack's boundary; or is an input of one S, or
// absent, or an output that nobody asked for.
template <class S, int I, int N>
bool are_packs(const Iteration<N>& it) {
  for (int k = 0; k < N; k++) {
    const Operand& o = it.operand[k];
    if (!o.data) continue;
    bool aligned = reinterpret_cast<uintptr_t>(o.data) % sizeof(Pack<S>) == 0;
    if (o.dtype != dtype_of_storage<S> || !(k < I && o.uniform ? true : o.flat && aligned)) return false;
  }
  return true;
}
// Calls use(S*) with the storage type of the packs, or use(void*) where there is none.
template <class T, int I, int N, class Use>
void with_pack_storage(const Iteration<N>& it, Use use) {
  with_storage_where<T>([&](auto* storage) { return are_packs<std::remove_pointer_t<decltype(storage)>, I>(it); }, use);
}

// A thread takes two packs at once where there is one input, so that enough bytes are on their way.
template <int I>
constexpr int kPacksAtOnce = I == 1 ? 2 : 1;
template <class S, int I>
constexpr int kElementsAtOnce = kPacksAtOnce<I> * Pack<S>::size;

// What the threads of a kernel over packs read.
template <class S, int I, int N>
struct PackedInputs {
  const Iteration<N>& it;
  const int64_t packs = it.numel / Pack<S>::size;
  Pack<S> x[kPacksAtOnce<I>][I];

  // An input of one element is the same pack throughout.
  __device__ explicit PackedInputs(const Iteration<N>& it) : it(it) {
    for (int k = 0; k < I; k++) {
      const Operand& o = it.operand[k];
      if (!o.uniform) continue;
      Pack<S> pack = Pack<S>::all(o.data ? *static_cast<const S*>(o.data) : Narrow<S>::from(1.f));
      for (int u = 0; u < kPacksAtOnce<I>; u++) x[u][k] = pack;
    }
  }
  // use(x, p) for each pack p that the thread takes at once, as its I inputs' packs x; round is which of these.
  template <class Use>
  __device__ void each_at_once(int64_t round, Use use) {
    const int64_t first = round * (kThreads * kPacksAtOnce<I>)+threadIdx.x;
    for (int u = 0; u < kPacksAtOnce<I>; u++) {
      const int64_t p = first + u * kThreads;
      if (p >= packs) continue;
      for (int k = 0; k < I; k++)
        if (!it.operand[k].uniform) x[u][k] = static_cast<const Pack<S>*>(it.operand[k].data)[p];
    }
    for (int u = 0; u < kPacksAtOnce<I>; u++)
      if (first + u * kThreads < packs) use(x[u], first + u * kThreads);
  }
  // use(x, i) for element i, which fills no pack, of a thread of the first block.
  template <class T, class Use>
  __device__ void rest(Use use) const {
    const int64_t i = packs * Pack<S>::size + threadIdx.x;
    if (blockIdx.x != 0 || i >= it.numel) return;
    T a[I];
    for (int k = 0; k < I; k++)
      a[k] = it.operand[k].uniform ? x[0][k].template at<T>(0) : widen<T>(static_cast<const S*>(it.operand[k].data)[i]);
    use(a, i);
  }
};

// The inputs of one element of packs.
template <class T, class S, int I>
__device__ void take(const Pack<S> (&x)[I], int j, T (&a)[I]) {
  for (int k = 0; k < I; k++) a[k] = x[k].template at<T>(j);
}

// S: the storage type of the packs, or void. A block has one round, and its threads one each.
template <class T, class S, int I, int O, class Body>
__global__ void __launch_bounds__(kThreads) map_kernel(const __grid_constant__ Iteration<I + O> it, Body body) {
  using C = Computed<T, S>;
  PackedInputs<S, I, I + O> inputs(it);
  inputs.each_at_once(blockIdx.x, [&](const Pack<S>(&x)[I], int64_t p) {
    C y[O][Pack<S>::size];
    for (int j = 0; j < Pack<S>::size; j++) {
      C a[I], b[O];
      take(x, j, a);
      body(a, b);
      for (int k = 0; k < O; k++) y[k][j] = b[k];
    }
    for (int k = 0; k < O; k++)
      if (void* out = it.operand[I + k].data) static_cast<Pack<S>*>(out)[p] = Pack<S>::of(y[k]);
  });
  inputs.template rest<C>([&](const C(&a)[I], int64_t i) {
    C b[O];
    body(a, b);
    for (int k = 0; k < O; k++)
      if (void* out = it.operand[I + k].data) static_cast<S*>(out)[i] = Narrow<S>::from(b[k]);
  });
}
template <class T, class S, int I, class Body, class Sums>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ Iteration<I> it, int64_t rounds, Body body, Sums sums) {
  using C = Computed<T, S>;
  double total[1] = {0};
  PackedInputs<S, I, I> inputs(it);
  for (int64_t round = blockIdx.x; round < rounds; round += gridDim.x)
    inputs.each_at_once(round, [&](const Pack<S>(&x)[I], int64_t) {
      C sum = C(0);
      for (int j = 0; j < Pack<S>::size; j++) {
        C a[I], b[1];
        take(x, j, a);
        body(a, b);
        sum += b[0];
      }
      total[0] += double(sum);
    });
  inputs.template rest<C>([&](const C(&a)[I], int64_t) {
    C b[1];
    body(a, b);
    total[0] += double(b[0]);
  });
  sums.add(total);
}

// The same over tiles.
template <class T, int I, int O, class Body>
__global__ void __launch_bounds__(kThreads, 4)
    map_tiles(const __grid_constant__ Iteration<I + O> it, const __grid_constant__ Stage<I> stage, Body body) {
  __shared__ StageMemory memory;
  const int64_t first = int64_t(blockIdx.x) * stage.tile;
  const unsigned n = unsigned(std::min<int64_t>(stage.tile, it.numel - first));
  read_tile<T>(it, stage, first, n, true, memory.bytes);
  LOSSREG_UNROLL_BY(1)
  for (unsigned j = threadIdx.x; j < n; j += kThreads) {
    T a[I], b[O];
    for (int k = 0; k < I; k++) a[k] = stage.template get<T>(memory.bytes, k, j);
    body(a, b);
    for (int k = 0; k < O; k++) {
      const Operand& o = it.operand[I + k];
      if (!o.data) continue;
      int64_t offset[1] = {first + j};
      if (!o.flat) it.to_offsets(I + k, offset);
      put(o, offset[0], b[k]);
    }
  }
}
template <class T, int I, class Body, class Sums>
__global__ void __launch_bounds__(kThreads, 4)
    sum_tiles(const __grid_constant__ Iteration<I> it, const __grid_constant__ Stage<I> stage, Body body, Sums sums) {
  __shared__ StageMemory memory;
  double total[1] = {0};
  for (int64_t first = int64_t(blockIdx.x) * stage.tile; first < it.numel; first += int64_t(gridDim.x) * stage.tile) {
    const unsigned n = unsigned(std::min<int64_t>(stage.tile, it.numel - first));
    read_tile<T>(it, stage, first, n, first == int64_t(blockIdx.x) * stage.tile, memory.bytes);
    T sum = T(0);
    LOSSREG_UNROLL_BY(1)
    for (unsigned j = threadIdx.x; j < n; j += kThreads) {
      T a[I], b[1];
      for (int k = 0; k < I; k++) a[k] = stage.template get<T>(memory.bytes, k, j);
      body(a, b);
      sum += b[0];
    }
    total[0] += double(sum);
    __syncthreads();
  }
  sums.add(total);
}

struct PointwiseKernels {
  template <class T, int I, int O, Sweep = Sweep::forward, class Body>
  static void map(const Iteration<I + O>& it, Body body) {
    if (it.numel == 0) return;
    with_pack_storage<T, I>(it, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if constexpr (std::is_void_v<S>) {
        auto stage = Stage<I>::template of<T>(it);
        launch(map_tiles<T, I, O, Body>, unsigned(rounds_for(it.numel, stage.tile)), kThreads, it, stage, body);
      } else {
        auto blocks = unsigned(rounds_for(it.numel, kThreads * kElementsAtOnce<S, I>));
        launch(map_kernel<T, S, I, O, Body>, blocks, kThreads, it, body);
      }
    });
  }

  // What is not flat has a launch of its own.
  template <class T, int I, int O, class Body>
  static void map_many(const std::vector<Iteration<I + O>>& many, Body body) {
    if constexpr (sizeof(T) == 4) {
      map_many_of<T, float, I, O>(many, body);
      map_many_of<T, BFloat16, I, O>(many, body);
      map_many_of<T, Float16, I, O>(many, body);
    }
    for (const auto& it : many)
      if (sizeof(T) == 8 || !(are_flat<float>(it) || are_flat<BFloat16>(it) || are_flat<Float16>(it)))
        map<T, I, O>(it, body);
  }

  template <class T, int I, class Body>
  static void sum(const Iteration<I>& it, Body body, double scale, const Tensor& out, DType dtype) {
    with_pack_storage<T, I>(it, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      WriteScaled finish{out.mutable_data_ptr(), dtype, scale};
      if constexpr (std::is_void_v<S>) {
        auto stage = Stage<I>::template of<T>(it);
        unsigned blocks = blocks_of_sum(rounds_for(it.numel, stage.tile));
        auto launch_sum = [&](auto sums) {
          launch(sum_tiles<T, I, Body, decltype(sums)>, blocks, kThreads, it, stage, body, sums);
        };
        sum_blocks<1>(out, blocks, launch_sum, finish);
      } else {
        int64_t rounds = rounds_for(it.numel, kThreads * kElementsAtOnce<S, I>);
        unsigned blocks = blocks_of_sum(rounds);
        auto launch_sum = [&](auto sums) {
          launch(sum_kernel<T, S, I, Body, decltype(sums)>, blocks, kThreads, it, rounds, body, sums);
        };
        sum_blocks<1>(out, blocks, launch_sum, finish);
      }
    });
  }
};

}  // namespace lossreg::cuda
