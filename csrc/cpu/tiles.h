#pragma once
// The CPU's tiles: pieces of the index space that stay in L1. A vector loop reads a tile of each operand as an array of
// the type that is computed in. An operand that lies in memory as such is read and written there; any other is copied
// into a buffer, tile by tile. So a loop is compiled once a formula and not once a dtype, and strides cost the copy.
#include "../base/tensor.h"
#include "lanes.h"

namespace lossreg::cpu {

constexpr int64_t kTile = 1024;  // elements

template <class T, class S>
LOSSREG_CLONES void widen_all(const S* from, int64_t stride, T* to, int64_t n) {
  if (stride == 1)
    for (int64_t i = 0; i < n; i++) to[i] = widen<T>(from[i]);
  else
    for (int64_t i = 0; i < n; i++) to[i] = widen<T>(from[i * stride]);
}
template <class T, class S>
LOSSREG_CLONES void narrow_all(const T* from, S* to, int64_t stride, int64_t n) {
  if (stride == 1)
    for (int64_t i = 0; i < n; i++) to[i] = Narrow<S>::from(from[i]);
  else
    for (int64_t i = 0; i < n; i++) to[i * stride] = Narrow<S>::from(from[i]);
}

// The dtype of a tensor whose elements are T as they lie in memory.
template <class T>
constexpr DType dtype_for = std::is_integral_v<T> ? DType::int64 : dtype_of_storage<T>;

// The n elements from base[offset] on, `stride` apart, as an array of T: where they lie, if they are that already, else
// in the buffer, into which they are copied. With T = BFloat16 the caller knows that they are that already.
template <class T>
const T* load(DType dtype, const void* base, int64_t offset, int64_t stride, T* buffer, int64_t n) {
  if (dtype == dtype_for<T> && stride == 1) return static_cast<const T*>(base) + offset;
  if constexpr (std::is_arithmetic_v<T>)
    with_storage(dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      widen_all<T, S>(static_cast<const S*>(base) + offset, stride, buffer, n);
    });
  return buffer;
}
// The other way: from the buffer into memory.
template <class T>
void store(DType dtype, void* base, int64_t offset, int64_t stride, const T* buffer, int64_t n) {
  if constexpr (std::is_arithmetic_v<T>)
    with_floating_storage(dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      narrow_all<T, S>(buffer, static_cast<S*>(base) + offset, stride, n);
    });
}

// The number that an operand is for the whole index space; 1, if it has no data.
template <class T>
T one_number(const Operand& o) {
  T value = T(1);
  return o.data ? *load(o.dtype, o.data, 0, 1, &value, 1) : value;
}
inline void write_scalar(const Tensor& out, DType dtype, double value) {
  store(dtype, out.mutable_data_ptr(), 0, 1, &value, 1);
}

// Calls run(done, offset, stride, length) for the elements [begin, begin + n) of operand k, in runs along the innermost
// dimension: `length` elements from `offset` on, `stride` apart, after `done` others.
template <int N, class Run>
void walk(const Iteration<N>& it, int k, int64_t begin, int64_t n, Run run) {
  const Operand& o = it.operand[k];
  int64_t index[kMaxDims], offset = 0, rest = begin;
  for (int d = 0; d < it.dims; d++) {
    index[d] = rest % it.size[d];
    rest /= it.size[d];
    offset += index[d] * o.stride[d];
  }
  int64_t inner = it.dims ? it.size[0] : 1, stride = it.dims ? o.stride[0] : 1;
  for (int64_t done = 0; done < n;) {
    int64_t length = std::min(n - done, it.dims ? inner - index[0] : int64_t(1));
    run(done, offset, stride, length);
    done += length;
    if (done == n) break;
    offset -= index[0] * o.stride[0];
    index[0] = 0;
    for (int d = 1; d < it.dims; d++) {
      offset += o.stride[d];
      if (++index[d] < it.size[d]) break;
      offset -= index[d] * o.stride[d];
      index[d] = 0;
    }
  }
}

// The elements [begin, begin + n) of operand k as an array.
template <class T, int N>
const T* read_tile(const Iteration<N>& it, int k, int64_t begin, int64_t n, T* buffer) {
  const Operand& o = it.operand[k];
  if (o.uniform) return buffer;  // Buffers have filled it
  if (o.flat) return load(o.dtype, o.data, begin, 1, buffer, n);
  walk(it, k, begin, n, [&](int64_t done, int64_t offset, int64_t stride, int64_t length) {
    const T* at = load(o.dtype, o.data, offset, stride, buffer + done, length);
    if (at != buffer + done) std::copy(at, at + length, buffer + done);
  });
  return buffer;
}

// A buffer of a tile for each operand. Where one of the operands [first, last) is one number, its buffer is filled with
// that, once for all tiles.
template <class S, int N>
struct Buffers {
  alignas(64) S at[N][kTile];
  template <int M>
  Buffers(const Iteration<M>& it, int first, int last) {
    for (int k = first; k < last; k++) {
      const Operand& o = it.operand[k];
      if (!o.uniform) continue;
      S value = Narrow<S>::from(1.f);
      if (o.data) value = *load(o.dtype, o.data, 0, 1, &value, 1);
      std::fill(at[k], at[k] + std::min(kTile, it.numel), value);
    }
  }
};

// Where a loop writes the results from `begin` on: straight into operand k, if that lies in memory as T in order; else
// into the buffer, from which write_tile() takes them.
template <class T, int N>
T* result_tile(const Iteration<N>& it, int k, int64_t begin, T* buffer) {
  const Operand& o = it.operand[k];
  return o.data && o.flat && o.dtype == dtype_for<T> ? static_cast<T*>(o.data) + begin : buffer;
}
template <class T, int N>
void write_tile(const Iteration<N>& it, int k, int64_t begin, int64_t n, const T* tile, const T* buffer) {
  const Operand& o = it.operand[k];
  if (!o.data || tile != buffer) return;  // nobody asked for it, or it is there already
  walk(it, k, begin, n, [&](int64_t done, int64_t offset, int64_t stride, int64_t length) {
    store(o.dtype, o.data, offset, stride, buffer + done, length);
  });
}

}  // namespace lossreg::cpu
