#pragma once
// One pointwise kernel over many tensors: a table of them goes with the launch, in the parameters.
#include "../../cuda/memory.h"

namespace lossreg::cuda {

// Blocks are dealt out to index spaces in turn, one for each kManyElements of a space that begins. Launches take 4 KB
// of parameters; the body has what the table leaves.
template <int N>
struct ManyTensors {
  static constexpr int kMost = (4096 - 256) / (8 * N + 12);
  void* data[kMost][N];
  int64_t numel[kMost];
  unsigned first[kMost];  // the first block of each
  int count = 0;
  unsigned blocks = 0;

  void add(const Iteration<N>& it, int64_t elements_a_block) {
    for (int k = 0; k < N; k++) data[count][k] = it.operand[k].data;
    numel[count] = it.numel;
    first[count++] = blocks;
    blocks += unsigned((it.numel + elements_a_block - 1) / elements_a_block);
  }
  // Which of them block b works on.
  __device__ int of_block(unsigned b) const {
    int low = 0;
    for (int high = count; high - low > 1;) {
      int middle = (low + high) / 2;
      if (first[middle] <= b) low = middle;
      else high = middle;
    }
    return low;
  }
};

// Every operand holds S, in the order of the index space.
template <class S, int N>
bool are_flat(const Iteration<N>& it) {
  for (const Operand& o : it.operand)
    if (!o.flat || o.dtype != dtype_of_storage<S>) return false;
  return true;
}

constexpr int kManyPacks = 4;  // a thread's
template <class S>
constexpr int64_t kManyElements = kManyPacks * kThreads * int64_t(Pack<S>::size);  // a block's

template <class T, class S, int I, int O, class Body>
__global__ void __launch_bounds__(kThreads)
    map_many_kernel(const __grid_constant__ ManyTensors<I + O> many, Body body) {
  constexpr int kWidth = Pack<S>::size;
  const int tensor = many.of_block(blockIdx.x);
  const int64_t begin = int64_t(blockIdx.x - many.first[tensor]) * kManyElements<S>, left = many.numel[tensor] - begin;
  const int n = int(left < kManyElements<S> ? left : kManyElements<S>);
  S* at[I + O];
  bool aligned = true;
  for (int k = 0; k < I + O; k++) {
    at[k] = static_cast<S*>(many.data[tensor][k]) + begin;
    aligned = aligned && reinterpret_cast<uintptr_t>(at[k]) % sizeof(Pack<S>) == 0;
  }

  const int packs = aligned ? n / kWidth : 0;
  Pack<S> x[kManyPacks][I];
  LOSSREG_UNROLL
  for (int u = 0; u < kManyPacks; u++) {
    int p = int(threadIdx.x) + u * int(kThreads);
    if (p >= packs) continue;
    for (int k = 0; k < I; k++) x[u][k] = reinterpret_cast<const Pack<S>*>(at[k])[p];
  }
  LOSSREG_UNROLL
  for (int u = 0; u < kManyPacks; u++) {
    int p = int(threadIdx.x) + u * int(kThreads);
    if (p >= packs) continue;
    T y[O][kWidth];
    for (int j = 0; j < kWidth; j++) {
      T a[I], b[O];
      for (int k = 0; k < I; k++) a[k] = x[u][k].template at<T>(j);
      body(a, b);
      for (int k = 0; k < O; k++) y[k][j] = b[k];
    }
    for (int k = 0; k < O; k++) reinterpret_cast<Pack<S>*>(at[I + k])[p] = Pack<S>::of(y[k]);
  }
  // what fills no pack, or lies on no pack's boundary
  LOSSREG_UNROLL_BY(4)
  for (int i = packs * kWidth + int(threadIdx.x); i < n; i += int(kThreads)) {
    T a[I], b[O];
    for (int k = 0; k < I; k++) a[k] = widen<T>(at[k][i]);
    body(a, b);
    for (int k = 0; k < O; k++) at[I + k][i] = Narrow<S>::from(b[k]);
  }
}

// Launches the kernel over those of the index spaces that hold S in order, for as many as fit at a time.
template <class T, class S, int I, int O, class Body>
void map_many_of(const std::vector<Iteration<I + O>>& many, Body body) {
  static_assert(sizeof(ManyTensors<I + O>) + sizeof(Body) <= 4096);
  ManyTensors<I + O> table;
  auto flush = [&] {
    if (table.count > 0) launch(map_many_kernel<T, S, I, O, Body>, table.blocks, kThreads, table, body);
    table.count = 0, table.blocks = 0;
  };
  for (const auto& it : many) {
    if (it.numel == 0 || !are_flat<S>(it)) continue;
    table.add(it, kManyElements<S>);
    if (table.count == table.kMost) flush();
  }
  flush();
}

}  // namespace lossreg::cuda
