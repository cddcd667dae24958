#pragma once
// The pointwise kernels on CUDA: packs of elements where memory allows, else one element a thread.
#include "../../cuda/reduce.h"
#include "cuda_many.h"

namespace lossreg::cuda {

// The fast path: every operand holds S, in the order of the index space, on a pack's boundary; or is an input of one
// element, or an output that nobody asked for.
template <class S, int I, int N>
bool are_packs(const Iteration<N>& it) {
  for (int k = 0; k < N; k++) {
    const Operand& o = it.operand[k];
    bool aligned = reinterpret_cast<uintptr_t>(o.data) % sizeof(Packed<S>) == 0;
    if (o.flat && aligned && o.dtype == dtype_of_storage<S>) continue;
    if (k < I ? !o.uniform : o.data != nullptr) return false;
  }
  return true;
}
// Calls use(S*) with the storage type of the fast path, or use(void*) where there is none.
template <class T, int I, int N, class Use>
void with_pack_storage(const Iteration<N>& it, Use use) {
  with_storage_where<T>([&](auto* storage) { return are_packs<std::remove_pointer_t<decltype(storage)>, I>(it); }, use);
}

// use(x, index, count) for this thread's elements, kPack at once: x[k][j] is element index + j of input k.
template <class T, class S, int I, int N, class Use>
__device__ void each_pack(const Iteration<N>& it, Use use) {
  T x[I][kPack];
  for (int k = 0; k < I; k++) {
    if (!it.operand[k].uniform) continue;
    T value = read<T>(it.operand[k], 0);
    for (int j = 0; j < kPack; j++) x[k][j] = value;
  }
  int64_t packs = it.numel / kPack;
  for (int64_t p = global_thread(); p < packs; p += all_threads()) {
    for (int k = 0; k < I; k++) {
      if (it.operand[k].uniform) continue;
      Packed<S> pack = static_cast<const Packed<S>*>(it.operand[k].data)[p];
      for (int j = 0; j < kPack; j++) x[k][j] = widen<T>(pack.at[j]);
    }
    use(x, p * kPack, kPack);
  }
  // what fills no pack: one element a thread
  int64_t last = packs * kPack + global_thread();
  if (last < it.numel) {
    for (int k = 0; k < I; k++)
      if (!it.operand[k].uniform) x[k][0] = widen<T>(static_cast<const S*>(it.operand[k].data)[last]);
    use(x, last, 1);
  }
}
// use(x, offsets) for this thread's elements, wherever they are and whatever they hold.
template <class T, int I, int N, class Use>
__device__ void each_element(const Iteration<N>& it, Use use) {
  for (int64_t i = global_thread(); i < it.numel; i += all_threads()) {
    int64_t offset[N];
    it.offsets(i, offset);
    T x[I];
    for (int k = 0; k < I; k++) x[k] = read<T>(it.operand[k], offset[k]);
    use(x, offset);
  }
}

// S: the storage type of the fast path, or void.
template <class T, class S, int I, int O, class Body>
__global__ void __launch_bounds__(kThreads) map_kernel(const __grid_constant__ Iteration<I + O> it, Body body) {
  if constexpr (std::is_void_v<S>) {
    each_element<T, I>(it, [&](const T(&x)[I], const int64_t (&offset)[I + O]) {
      T y[O];
      body(x, y);
      for (int k = 0; k < O; k++)
        if (it.operand[I + k].data) write(it.operand[I + k], offset[I + k], y[k]);
    });
  } else {
    each_pack<T, S, I>(it, [&](const T(&x)[I][kPack], int64_t i, int n) {
      Packed<S> y[O];
      for (int j = 0; j < kPack; j++) {
        T a[I], b[O];
        for (int k = 0; k < I; k++) a[k] = x[k][j];
        body(a, b);
        for (int k = 0; k < O; k++) y[k].at[j] = Narrow<S>::from(b[k]);
      }
      for (int k = 0; k < O; k++) {
        S* out = static_cast<S*>(it.operand[I + k].data);
        if (!out) continue;
        if (n == kPack) *reinterpret_cast<Packed<S>*>(out + i) = y[k];
        else out[i] = y[k].at[0];
      }
    });
  }
}
template <class T, class S, int I, class Body, class Sums>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ Iteration<I> it, Body body, Sums sums) {
  double total[1] = {0};
  if constexpr (std::is_void_v<S>) {
    each_element<T, I>(it, [&](const T(&x)[I], const int64_t (&)[I]) {
      T y[1];
      body(x, y);
      total[0] += double(y[0]);
    });
  } else {
    each_pack<T, S, I>(it, [&](const T(&x)[I][kPack], int64_t, int n) {
      T sum = T(0);
      for (int j = 0; j < kPack; j++) {
        T a[I], y[1];
        for (int k = 0; k < I; k++) a[k] = x[k][j];
        body(a, y);
        sum += j < n ? y[0] : T(0);
      }
      total[0] += double(sum);
    });
  }
  sums.add(total);
}

struct PointwiseKernels {
  template <class T, int I, int O, Sweep = Sweep::forward, class Body>
  static void map(const Iteration<I + O>& it, Body body) {
    if (it.numel == 0) return;
    with_pack_storage<T, I>(it, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      unsigned blocks = blocks_for(it.numel, kPack);
      launch(map_kernel<T, S, I, O, Body>, blocks, kThreads, it, body);
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
    unsigned blocks = blocks_for(it.numel, kPack);
    auto launch_sum = [&](auto sums) {
      with_pack_storage<T, I>(it, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        launch(sum_kernel<T, S, I, Body, decltype(sums)>, blocks, kThreads, it, body, sums);
      });
    };
    sum_blocks<1>(out, blocks, launch_sum, WriteScaled{out.mutable_data_ptr(), dtype, scale});
  }
};

}  // namespace lossreg::cuda
