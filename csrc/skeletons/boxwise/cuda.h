#pragma once
// Box losses on CUDA: a pair of boxes a thread, each box in one load of 16 bytes, or 8 where it has 16 bits a number.
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

// A box as memory holds it on the fast path, and as it was read on the other one.
template <class S>
using PackedBox = Pack<S, 4 * int(sizeof(S))>;
template <class T, class S>
struct BoxRead : PackedBox<S> {};
template <class T>
struct BoxRead<T, void> {
  T x[4];
  template <class>
  __device__ T at(int c) const {
    return x[c];
  }
};
// How many pairs a thread reads at once: where a box has 8 bytes, enough are on their way with two of them.
template <class S>
constexpr int kPairsAtOnce = std::is_same_v<S, BFloat16> || std::is_same_v<S, Float16> ? 2 : 1;

// The fast path: every box lies in memory as a pack of S, and what the pairs have of values is S. One number for all of
// them may be a float beside 16 bits.
template <class S>
bool boxes_are_packs(const Boxes& boxes) {
  for (int k = 0; k < Boxes::kRoles; k++) {
    const Operand& o = boxes.it.operand[k];
    if (!o.data || (!Boxes::is_box(k) && o.uniform && o.dtype == DType::float32)) continue;
    if (o.dtype != dtype_of_storage<S>) return false;
    if (!Boxes::is_box(k)) continue;
    bool aligned = reinterpret_cast<uintptr_t>(o.data) % sizeof(PackedBox<S>) == 0;
    for (int d = 0; d < boxes.it.dims; d++) aligned = aligned && o.stride[d] % 4 == 0;
    if (!aligned || boxes.coordinate[k] != 1) return false;
  }
  return true;
}
// Calls use(S*) with the storage type of the fast path, or use(void*) where there is none.
template <class T, class Use>
void with_box_storage(const Boxes& boxes, Use use) {
  with_storage_where<T>([&](auto* storage) { return boxes_are_packs<std::remove_pointer_t<decltype(storage)>>(boxes); },
                        use);
}

template <class T, class S>
__device__ BoxRead<T, S> read_box(const Boxes& boxes, Boxes::Role k, int64_t offset) {
  const Operand& o = boxes.it.operand[k];
  BoxRead<T, S> box;
  if constexpr (std::is_void_v<S>) {
    with_storage(o.dtype, [&](auto* tag) {
      const auto* data = static_cast<decltype(tag)>(o.data) + offset;
      for (int c = 0; c < 4; c++) box.x[c] = widen<T>(data[c * boxes.coordinate[k]]);
    });
  } else {
    static_cast<PackedBox<S>&>(box) = *reinterpret_cast<const PackedBox<S>*>(static_cast<const S*>(o.data) + offset);
  }
  return box;
}
template <class T, class S>
__device__ void write_box(const Boxes& boxes, Boxes::Role k, int64_t offset, T factor, const T (&x)[4]) {
  const Operand& o = boxes.it.operand[k];
  if (!o.data) return;
  if constexpr (std::is_void_v<S>) {
    with_floating_storage(o.dtype, [&](auto* tag) {
      using Stored = std::remove_pointer_t<decltype(tag)>;
      for (int c = 0; c < 4; c++)
        static_cast<Stored*>(o.data)[offset + c * boxes.coordinate[k]] = Narrow<Stored>::from(factor * x[c]);
    });
  } else {
    T y[4];
    for (int c = 0; c < 4; c++) y[c] = factor * x[c];
    *reinterpret_cast<PackedBox<S>*>(static_cast<S*>(o.data) + offset) = PackedBox<S>::of(y);
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
template <class T, class S, Sweep sweep, class Use>
__device__ void each_pair(const Boxes& boxes, int64_t round, Use use) {
  constexpr int kAtOnce = kPairsAtOnce<S>;
  const int64_t first = round * (kAtOnce * kThreads) + threadIdx.x;
  BoxRead<T, S> input[kAtOnce], target[kAtOnce];
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
    input[u] = read_box<T, S>(boxes, Boxes::kInput, offset[u][Boxes::kInput]);
    target[u] = read_box<T, S>(boxes, Boxes::kTarget, offset[u][Boxes::kTarget]);
    factor[u] = once;
    if constexpr (sweep == Sweep::backward)
      if (!value.uniform) factor[u] = read_value<T, S>(value, offset[u][Boxes::kValue]);
  }
  LOSSREG_UNROLL
  for (int u = 0; u < kAtOnce; u++) {
    if (first + u * kThreads >= boxes.it.numel) break;
    T a[4], b[4];
    for (int c = 0; c < 4; c++) a[c] = input[u].template at<T>(c), b[c] = target[u].template at<T>(c);
    use(a, b, offset[u], factor[u]);
  }
}

// S: the storage type of the fast path, or void. __grid_constant__: what takes the address of an operand would put all
// of them into the memory of each thread.
template <class T, class S, class Body>
__global__ void __launch_bounds__(kThreads) boxes_map(const __grid_constant__ Boxes boxes, Body body) {
  using C = Computed<T, S>;
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]);
  each_pair<C, S, Sweep::forward>(
      boxes, blockIdx.x, [&](const C(&a)[4], const C(&b)[4], const int64_t (&offset)[Boxes::kRoles], C) {
        write_value<S>(boxes.it.operand[Boxes::kValue], offset[Boxes::kValue], body.value(a, b, third));
      });
}
template <class T, class S, class Body, class Sums>
__global__ void __launch_bounds__(kThreads)
    boxes_sum(const __grid_constant__ Boxes boxes, int64_t rounds, Body body, Sums sums) {
  using C = Computed<T, S>;
  double total[1] = {0};
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]);
  for (int64_t round = blockIdx.x; round < rounds; round += gridDim.x) {
    C sum = C(0);
    each_pair<C, S, Sweep::forward>(
        boxes, round,
        [&](const C(&a)[4], const C(&b)[4], const int64_t (&)[Boxes::kRoles], C) { sum += body.value(a, b, third); });
    total[0] += double(sum);
  }
  sums.add(total);
}
template <class T, class S, class Body>
__global__ void __launch_bounds__(kThreads, 4)
    boxes_grad(const __grid_constant__ Boxes boxes, Body body, Parameter scale) {
  using C = Computed<T, S>;
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]);
  auto write_gradients = [&](const C(&a)[4], const C(&b)[4], const int64_t (&offset)[Boxes::kRoles], C factor) {
    factor = factor * C(scale);
    C da[4], db[4];
    body.grad(a, b, third, da, db);
    write_box<C, S>(boxes, Boxes::kGradInput, offset[Boxes::kGradInput], factor, da);
    write_box<C, S>(boxes, Boxes::kGradTarget, offset[Boxes::kGradTarget], factor, db);
  };
  each_pair<C, S, Sweep::backward>(boxes, blockIdx.x, write_gradients);
}

struct BoxKernels {
  template <class T, class Body>
  static void map(const Boxes& boxes, Body body) {
    if (boxes.it.numel == 0) return;
    with_box_storage<T>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(boxes_map<T, S, Body>, unsigned(rounds_of<S>(boxes)), kThreads, boxes, body);
    });
  }
  template <class T, class Body>
  static void sum(const Boxes& boxes, Body body, double scale, const Tensor& out, DType dtype) {
    with_box_storage<T>(boxes, [&](auto* tag) {
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
    with_box_storage<T>(boxes, [&](auto* tag) {
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
