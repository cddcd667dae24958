#pragma once
// Box losses on CUDA: a pair of boxes a thread, each box in one load of 16 bytes, or 8 where it has 16 bits a number.
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

// A box in memory, or its gradient.
template <class S>
struct alignas(4 * sizeof(S)) PackedBox {
  S at[4];
};

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
__device__ void read_box(const Boxes& boxes, Boxes::Role k, int64_t offset, T (&x)[4]) {
  const Operand& o = boxes.it.operand[k];
  if constexpr (std::is_void_v<S>) {
    with_storage(o.dtype, [&](auto* tag) {
      using Stored = std::remove_pointer_t<decltype(tag)>;
      for (int c = 0; c < 4; c++) x[c] = widen<T>(static_cast<const Stored*>(o.data)[offset + c * boxes.coordinate[k]]);
    });
  } else {
    auto box = *reinterpret_cast<const PackedBox<S>*>(static_cast<const S*>(o.data) + offset);
    for (int c = 0; c < 4; c++) x[c] = widen<T>(box.at[c]);
  }
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
    PackedBox<S> box;
    for (int c = 0; c < 4; c++) box.at[c] = Narrow<S>::from(factor * x[c]);
    *reinterpret_cast<PackedBox<S>*>(static_cast<S*>(o.data) + offset) = box;
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

// use(a, b, offsets) of pair i.
template <class T, class S, class Use>
__device__ void with_pair(const Boxes& boxes, int64_t i, Use use) {
  int64_t offset[Boxes::kRoles];
  boxes.it.offsets(i, offset);
  T a[4], b[4];
  read_box<T, S>(boxes, Boxes::kInput, offset[Boxes::kInput], a);
  read_box<T, S>(boxes, Boxes::kTarget, offset[Boxes::kTarget], b);
  use(a, b, offset);
}

// S: the storage type of the fast path, or void. __grid_constant__: what takes the address of an operand would put all
// of them into the memory of each thread.
template <class T, class S, class Body>
__global__ void __launch_bounds__(kThreads) boxes_map(const __grid_constant__ Boxes boxes, Body body) {
  using C = Computed<T, S>;
  if (global_thread() >= boxes.it.numel) return;
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]);
  with_pair<C, S>(boxes, global_thread(), [&](const C(&a)[4], const C(&b)[4], const int64_t (&offset)[Boxes::kRoles]) {
    write_value<S>(boxes.it.operand[Boxes::kValue], offset[Boxes::kValue], body.value(a, b, third));
  });
}
template <class T, class S, class Body, class Sums>
__global__ void __launch_bounds__(kThreads) boxes_sum(const __grid_constant__ Boxes boxes, Body body, Sums sums) {
  using C = Computed<T, S>;
  double total[1] = {0};
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]);
  for (int64_t i = global_thread(); i < boxes.it.numel; i += all_threads())
    with_pair<C, S>(boxes, i, [&](const C(&a)[4], const C(&b)[4], const int64_t (&)[Boxes::kRoles]) {
      total[0] += double(body.value(a, b, third));
    });
  sums.add(total);
}
template <class T, class S, class Body>
__global__ void __launch_bounds__(kThreads)
    boxes_grad(const __grid_constant__ Boxes boxes, Body body, Parameter scale) {
  using C = Computed<T, S>;
  if (global_thread() >= boxes.it.numel) return;
  const Operand& value = boxes.it.operand[Boxes::kValue];
  C third = read_once<C, S>(boxes.it.operand[Boxes::kThird]), factor = read_once<C, S>(value);
  with_pair<C, S>(boxes, global_thread(), [&](const C(&a)[4], const C(&b)[4], const int64_t (&offset)[Boxes::kRoles]) {
    if (!value.uniform) factor = read_value<C, S>(value, offset[Boxes::kValue]);
    factor = factor * C(scale);
    C da[4], db[4];
    body.grad(a, b, third, da, db);
    write_box<C, S>(boxes, Boxes::kGradInput, offset[Boxes::kGradInput], factor, da);
    write_box<C, S>(boxes, Boxes::kGradTarget, offset[Boxes::kGradTarget], factor, db);
  });
}

struct BoxKernels {
  template <class T, class Body>
  static void map(const Boxes& boxes, Body body) {
    if (boxes.it.numel == 0) return;
    with_box_storage<T>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(boxes_map<T, S, Body>, unsigned(rounds_for(boxes.it.numel, kThreads)), kThreads, boxes, body);
    });
  }
  template <class T, class Body>
  static void sum(const Boxes& boxes, Body body, double scale, const Tensor& out, DType dtype) {
    unsigned blocks = blocks_of_sum(rounds_for(boxes.it.numel, kThreads));
    auto launch_sum = [&](auto sums) {
      with_box_storage<T>(boxes, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        launch(boxes_sum<T, S, Body, decltype(sums)>, blocks, kThreads, boxes, body, sums);
      });
    };
    sum_blocks<1>(out, blocks, launch_sum, WriteScaled{out.mutable_data_ptr(), dtype, scale});
  }
  template <class T, class Body>
  static void grad(const Boxes& boxes, Body body, double scale) {
    if (boxes.it.numel == 0) return;
    with_box_storage<T>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      auto blocks = unsigned(rounds_for(boxes.it.numel, kThreads));
      launch(boxes_grad<T, S, Body>, blocks, kThreads, boxes, body, Parameter(scale));
    });
  }
};

}  // namespace lossreg::cuda
