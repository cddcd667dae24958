#pragma once
// Box losses on CUDA: a pair of boxes a thread, each box of four numbers in one load of 16 bytes, or 8 where it has 16
// bits a number.
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

// The numbers of a box side by side, where they are no pack: each is a load of its own.
template <class S, int N>
struct Numbers {
  S x[N];
  template <class T>
  __device__ static Numbers of(const T (&x)[N]) {
    Numbers box;
    for (int c = 0; c < N; c++) box.x[c] = Narrow<S>::from(x[c]);
    return box;
  }
  template <class T>
  __device__ T at(int c) const {
    return widen<T>(x[c]);
  }
};
// A box of N numbers as memory holds it on the fast path, and as it was read on the other one.
template <class S, int N>
using StoredBox = std::conditional_t<N == 4, Pack<S, 4 * int(sizeof(S))>, Numbers<S, N>>;
template <class T, class S, int N>
struct BoxRead : StoredBox<S, N> {};
template <class T, int N>
struct BoxRead<T, void, N> {
  T x[N];
  template <class>
  __device__ T at(int c) const {
    return x[c];
  }
};
// How many pairs a thread reads at once: where a box has 8 bytes, enough are on their way with two of them.
template <class S>
constexpr int kPairsAtOnce = std::is_same_v<S, BFloat16> || std::is_same_v<S, Float16> ? 2 : 1;

// The fast path: every box lies in memory as a StoredBox, and what the pairs have of values is S. One number for all of
// them may be a float beside 16 bits.
template <class S, int N>
bool boxes_are_stored(const Boxes& boxes) {
  for (int k = 0; k < Boxes::kRoles; k++) {
    const Operand& o = boxes.it.operand[k];
    if (!o.data || (!Boxes::is_box(k) && o.uniform && o.dtype == DType::float32)) continue;
    if (o.dtype != dtype_of_storage<S>) return false;
    if (!Boxes::is_box(k)) continue;
    constexpr int64_t alignment = alignof(StoredBox<S, N>);
    bool aligned = reinterpret_cast<uintptr_t>(o.data) % alignment == 0;
    for (int d = 0; d < boxes.it.dims; d++) aligned = aligned && o.stride[d] * int64_t(sizeof(S)) % alignment == 0;
    if (!aligned || boxes.coordinate[k] != 1) return false;
  }
  return true;
}
// Calls use(S*) with the storage type of the fast path, or use(void*) where there is none.
template <class T, int N, class Use>
void with_box_storage(const Boxes& boxes, Use use) {
  auto stored = [&](auto* storage) { return boxes_are_stored<std::remove_pointer_t<decltype(storage)>, N>(boxes); };
  with_storage_where<T>(stored, use);
}

template <class T, class S, int N>
__device__ BoxRead<T, S, N> read_box(const Boxes& boxes, Boxes::Role k, int64_t offset) {
  const Operand& o = boxes.it.operand[k];
  BoxRead<T, S, N> box;
  if constexpr (std::is_void_v<S>) {
    with_storage(o.dtype, [&](auto* tag) {
      const auto* data = static_cast<decltype(tag)>(o.data) + offset;
      for (int c = 0; c < N; c++) box.x[c] = widen<T>(data[c * boxes.coordinate[k]]);
    });
  } else {
    using Stored = StoredBox<S, N>;
    static_cast<Stored&>(box) = *reinterpret_cast<const Stored*>(static_cast<const S*>(o.data) + offset);
  }
  return box;
}
template <class S, class T, int N>
__device__ void write_box(const Boxes& boxes, Boxes::Role k, int64_t offset, T factor, const T (&x)[N]) {
  const Operand& o = boxes.it.operand[k];
  if (!o.data) return;
  if constexpr (std::is_void_v<S>) {
    with_floating_storage(o.dtype, [&](auto* tag) {
      using Stored = std::remove_pointer_t<decltype(tag)>;
      for (int c = 0; c < N; c++)
        static_cast<Stored*>(o.data)[offset + c * boxes.coordinate[k]] = Narrow<Stored>::from(factor * x[c]);
    });
  } else {
    T y[N];
    for (int c = 0; c < N; c++) y[c] = factor * x[c];
    *reinterpret_cast<StoredBox<S, N>*>(static_cast<S*>(o.data) + offset) = StoredBox<S, N>::of(y);
  }
}
// A pair's value, or its gradient.
template <class T, class S>
__device__ T read_value(const Operand& o, int64_t offset) {
  if constexpr (std::is_void_v<S>) return get<T>(o, offset);
  else return widen<T>(static_cast<const S*>(o.data)[offset]);
}
template <class S, class T>
__device__ void write_value(const Operand& o, int64_t offset, T value) {
  if constexpr (std::is_void_v<S>) put(o, offset, value);
  else static_cast<S*>(o.data)[offset] = Narrow<S>::from(value);
}
// The third tensor, or the gradient of a reduced loss: one number for all pairs.
template <class T, class S>
__device__ T read_once(const Operand& o) {
  if (!o.data || !o.uniform) return T(1);
  if constexpr (std::is_void_v<S>) return get<T>(o, 0);
  else if (o.dtype == DType::float32) return T(*static_cast<const float*>(o.data));
  else return widen<T>(*static_cast<const S*>(o.data));
}

// use(a, b, offsets, factor) of each pair that this thread takes in a round of the block's; factor is the gradient of
// its value, and in a forward sweep 1.
template <class T, class S, int N, Sweep sweep, class Use>
__device__ void each_pair(const Boxes& boxes, int64_t round, Use use) {
  constexpr int kAtOnce = kPairsAtOnce<S>;
  const int64_t first = round * (kAtOnce * kThreads) + threadIdx.x;
  BoxRead<T, S, N> input[kAtOnce], target[kAtOnce];
  const Operand& value = boxes.it.operand[Boxes::kValue];
  const T once = sweep == Sweep::forward ? T(1) : read_once<T, S>(value);
  T factor[kAtOnce] = {};
  int64_t offset[kAtOnce][Boxes::kRoles];
  LOSSREG_UNROLL
  for (int u = 0; u < kAtOnce; u++) {
    if (first + u * kThreads >= boxes.it.numel) break;
    if (u == 0 || boxes.it.dims > 1) {
      boxes.it.offsets(first + u * kThreads, offset[u]);
    } else {
      for (int k = 0; k < Boxes::kRoles; k++)
        offset[u][k] = offset[0][k] + int64_t(u * kThreads) * boxes.it.operand[k].stride[0];
    }
    input[u] = read_box<T, S, N>(boxes, Boxes::kInput, offset[u][Boxes::kInput]);
    target[u] = read_box<T, S, N>(boxes, Boxes::kTarget, offset[u][Boxes::kTarget]);
    factor[u] = once;
    if constexpr (sweep == Sweep::backward)
      if (!value.uniform) factor[u] = read_value<T, S>(value, offset[u][Boxes::kValue]);
  }
  LOSSREG_UNROLL
  for (int u = 0; u < kAtOnce; u++) {
    if (first + u * kThreads >= boxes.it.numel) break;
    T a[N], b[N];
    for (int c = 0; c < N; c++) a[c] = input[u].template at<T>(c), b[c] = target[u].template at<T>(c);
    use(a, b, offset[u], factor[u]);
  }
}

// S: the storage type of the fast path, or void. __grid_constant__: what takes the address of an operand would put all
// of them into the memory of each thread.
template <class T, class S, class Body>
__global__ void __launch_bounds__(kThreads) boxes_map(const __grid_constant__ Boxes boxes, Body body) {
  using C = Computed<T, S>;
  constexpr int N = Body::numbers;
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]);
  each_pair<C, S, N, Sweep::forward>(
      boxes, blockIdx.x, [&](const C(&a)[N], const C(&b)[N], const int64_t (&offset)[Boxes::kRoles], C) {
        write_value<S>(boxes.it.operand[Boxes::kValue], offset[Boxes::kValue], body.value(a, b, third));
      });
}
template <class T, class S, class Body, class Sums>
__global__ void __launch_bounds__(kThreads)
    boxes_sum(const __grid_constant__ Boxes boxes, int64_t rounds, Body body, Sums sums) {
  using C = Computed<T, S>;
  constexpr int N = Body::numbers;
  double total[1] = {0};
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]);
  for (int64_t round = blockIdx.x; round < rounds; round += gridDim.x) {
    C sum = C(0);
    each_pair<C, S, N, Sweep::forward>(
        boxes, round,
        [&](const C(&a)[N], const C(&b)[N], const int64_t (&)[Boxes::kRoles], C) { sum += body.value(a, b, third); });
    total[0] += double(sum);
  }
  sums.add(total);
}
template <class T, class S, class Body>
__global__ void __launch_bounds__(kThreads, 4)
    boxes_grad(const __grid_constant__ Boxes boxes, Body body, Parameter scale) {
  using C = Computed<T, S>;
  constexpr int N = Body::numbers;
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]);
  auto write_gradients = [&](const C(&a)[N], const C(&b)[N], const int64_t (&offset)[Boxes::kRoles], C factor) {
    factor = factor * C(scale);
    C da[N], db[N];
    body.grad(a, b, third, da, db);
    write_box<S>(boxes, Boxes::kGradInput, offset[Boxes::kGradInput], factor, da);
    write_box<S>(boxes, Boxes::kGradTarget, offset[Boxes::kGradTarget], factor, db);
  };
  each_pair<C, S, N, Sweep::backward>(boxes, blockIdx.x, write_gradients);
}

struct BoxKernels {
  template <class T, class Body>
  static void map(const Boxes& boxes, Body body) {
    if (boxes.it.numel == 0) return;
    with_box_storage<T, Body::numbers>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(boxes_map<T, S, Body>, unsigned(rounds_of<S>(boxes)), kThreads, boxes, body);
    });
  }
  template <class T, class Body>
  static void sum(const Boxes& boxes, Body body, double scale, const Tensor& out, DType dtype) {
    with_box_storage<T, Body::numbers>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      const int64_t rounds = rounds_of<S>(boxes);
      const unsigned blocks = blocks_of_sum(rounds, kMostBlocks);
      auto launch_sum = [&](auto sums) {
        launch(boxes_sum<T, S, Body, decltype(sums)>, blocks, kThreads, boxes, rounds, body, sums);
      };
      sum_blocks<1>(out, blocks, launch_sum, WriteScaled{out.mutable_data_ptr(), dtype, scale});
    });
  }
  template <class T, class Body>
  static void grad(const Boxes& boxes, Body body, double scale) {
    if (boxes.it.numel == 0) return;
    with_box_storage<T, Body::numbers>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(boxes_grad<T, S, Body>, unsigned(rounds_of<S>(boxes)), kThreads, boxes, body, Parameter(scale));
    });
  }

 private:
  // A block's end takes as many instructions as a pair's formula, so that it should have several rounds; four or five
  // blocks are what a multiprocessor has room for.
  static constexpr int64_t kMostBlocks = 640;
  template <class S>
  static int64_t rounds_of(const Boxes& boxes) {
    return rounds_for(boxes.it.numel, kPairsAtOnce<S> * kThreads);
  }
};

}  // namespace lossreg::cuda
