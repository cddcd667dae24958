#pragma once
// Box losses on CUDA: a pair of boxes a thread, each box in one load of 8 (half precision), 16 or 32 bytes.
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

static_assert(kPack == 4, "a box fills a pack");

// The fast path: every box lies in memory as a pack of S.
template <class S>
bool boxes_are_packs(const Boxes& boxes) {
  for (int k = 0; k < Boxes::kRoles; k++) {
    const Operand& o = boxes.it.operand[k];
    if (!Boxes::is_box(k) || !o.data) continue;
    bool aligned = reinterpret_cast<uintptr_t>(o.data) % sizeof(Packed<S>) == 0;
    for (int d = 0; d < boxes.it.dims; d++) aligned = aligned && o.stride[d] % 4 == 0;
    if (!aligned || boxes.coordinate[k] != 1 || o.dtype != dtype_of_storage<S>) return false;
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
    for (int c = 0; c < 4; c++) x[c] = read<T>(o, offset + c * boxes.coordinate[k]);
  } else {
    Packed<S> pack = *reinterpret_cast<const Packed<S>*>(static_cast<const S*>(o.data) + offset);
    for (int c = 0; c < 4; c++) x[c] = widen<T>(pack.at[c]);
  }
}
template <class T, class S>
__device__ void write_box(const Boxes& boxes, Boxes::Role k, int64_t offset, T factor, const T (&x)[4]) {
  const Operand& o = boxes.it.operand[k];
  if (!o.data) return;
  if constexpr (std::is_void_v<S>) {
    for (int c = 0; c < 4; c++) write(o, offset + c * boxes.coordinate[k], factor * x[c]);
  } else {
    Packed<S> pack;
    for (int c = 0; c < 4; c++) pack.at[c] = Narrow<S>::from(factor * x[c]);
    *reinterpret_cast<Packed<S>*>(static_cast<S*>(o.data) + offset) = pack;
  }
}
// use(a, b, third, offsets) for this thread's pairs.
template <class T, class S, class Use>
__device__ void each_pair(const Boxes& boxes, Use use) {
  T third = read<T>(boxes.it.operand[Boxes::kThird], 0);
  for (int64_t i = global_thread(); i < boxes.it.numel; i += all_threads()) {
    int64_t offset[Boxes::kRoles];
    boxes.it.offsets(i, offset);
    T a[4], b[4];
    read_box<T, S>(boxes, Boxes::kInput, offset[Boxes::kInput], a);
    read_box<T, S>(boxes, Boxes::kTarget, offset[Boxes::kTarget], b);
    use(a, b, third, offset);
  }
}

// S: the storage type of the fast path, or void. __grid_constant__: read() and write() take the address of an operand,
// which would put all of them into the memory of each thread.
template <class T, class S, class Body>
__global__ void __launch_bounds__(kThreads) boxes_map(const __grid_constant__ Boxes boxes, Body body) {
  each_pair<T, S>(boxes, [&](const T(&a)[4], const T(&b)[4], T third, const int64_t (&offset)[Boxes::kRoles]) {
    write(boxes.it.operand[Boxes::kValue], offset[Boxes::kValue], body.value(a, b, third));
  });
}
template <class T, class S, class Body, class Sums>
__global__ void __launch_bounds__(kThreads) boxes_sum(const __grid_constant__ Boxes boxes, Body body, Sums sums) {
  double total[1] = {0};
  each_pair<T, S>(boxes, [&](const T(&a)[4], const T(&b)[4], T third, const int64_t (&)[Boxes::kRoles]) {
    total[0] += double(body.value(a, b, third));
  });
  sums.add(total);
}
template <class T, class S, class Body>
__global__ void __launch_bounds__(kThreads) boxes_grad(const __grid_constant__ Boxes boxes, Body body, double scale) {
  each_pair<T, S>(boxes, [&](const T(&a)[4], const T(&b)[4], T third, const int64_t (&offset)[Boxes::kRoles]) {
    T da[4], db[4], factor = read<T>(boxes.it.operand[Boxes::kValue], offset[Boxes::kValue]) * T(scale);
    body.grad(a, b, third, da, db);
    write_box<T, S>(boxes, Boxes::kGradInput, offset[Boxes::kGradInput], factor, da);
    write_box<T, S>(boxes, Boxes::kGradTarget, offset[Boxes::kGradTarget], factor, db);
  });
}

struct BoxKernels {
  template <class T, class Body>
  static void map(const Boxes& boxes, Body body) {
    if (boxes.it.numel == 0) return;
    with_box_storage<T>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(boxes_map<T, S, Body>, blocks_for(boxes.it.numel, 1), kThreads, boxes, body);
    });
  }
  template <class T, class Body>
  static void sum(const Boxes& boxes, Body body, double scale, const Tensor& out, DType dtype) {
    unsigned blocks = blocks_for(boxes.it.numel, 1);
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
      unsigned blocks = blocks_for(boxes.it.numel, 1);
      launch(boxes_grad<T, S, Body>, blocks, kThreads, boxes, body, scale);
    });
  }
};

}  // namespace lossreg::cuda
