#pragma once
// The CPU's tiles: pieces of the index space that stay in L1. A vector loop reads a tile of each operand as an array of
// the type that is computed in. An operand that lies in memory as such is read and written there; any other is copied
// into a buffer, tile by tile. So a loop is compiled once a formula and not once a dtype, and strides cost the copy.
#include "../base/tensor.h"
#include "lanes.h"

namespace lossreg::cpu {

constexpr int64_t kTile = 1024;

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

template <class T>
constexpr DType dtype_for = std::is_integral_v<T> ? DType::int64 : dtype_of_storage<T>;

// Elements at base + i * stride, i < n: themselves where they lie as such, else a copy in the buffer. (BFloat16 is no
// type to compute in: it is read where it lies, see is_stored_as.)
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
template <class T>
void store(DType dtype, void* base, int64_t offset, int64_t stride, const T* buffer, int64_t n) {
  if constexpr (std::is_arithmetic_v<T>)
    with_floating_storage(dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      narrow_all<T, S>(buffer, static_cast<S*>(base) + offset, stride, n);
    });
}

// The value of an operand that is one number for the whole index space; 1 where there is none.
template <class T>
T one_number(const Operand& o) {
  T value = T(1);
  return o.data ? *load(o.dtype, o.data, 0, 1, &value, 1) : value;
}
inline void write_scalar(const Tensor& out, DType dtype, double value) {
  store(dtype, out.mutable_data_ptr(), 0, 1, &value, 1);
}

// Walks the elements [begin, begin + n) of operand k in runs along the innermost dimension.
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

// Do the operands from `first` on lie in memory as S, in order, or are one S? The loops read them there.
template <class S, int N>
bool is_stored_as(const Iteration<N>& it, int first) {
  for (int k = first; k < N; k++) {
    const Operand& o = it.operand[k];
    if (o.data && (o.dtype != dtype_of_storage<S> || !(o.flat || o.uniform))) return false;
  }
  return true;
}

// The tile [begin, begin + n) of operand k.
template <class T, int N>
const T* read_tile(const Iteration<N>& it, int k, int64_t begin, int64_t n, T* buffer) {
  const Operand& o = it.operand[k];
  if (o.uniform) return buffer;  // filled by Buffers, once
  if (o.flat) return load(o.dtype, o.data, begin, 1, buffer, n);
  walk(it, k, begin, n, [&](int64_t done, int64_t offset, int64_t stride, int64_t length) {
    const T* at = load(o.dtype, o.data, offset, stride, buffer + done, length);
    if (at != buffer + done) std::copy(at, at + length, buffer + done);
  });
  return buffer;
}

// Where the tile's results go: straight into memory where that holds T in order, else into the buffer.
template <class T, int N>
T* result_tile(const Iteration<N>& it, int k, int64_t begin, T* buffer) {
  const Operand& o = it.operand[k];
  return o.data && o.flat && o.dtype == dtype_for<T> ? static_cast<T*>(o.data) + begin : buffer;
}
template <class T, int N>
void write_tile(const Iteration<N>& it, int k, int64_t begin, int64_t n, const T* tile, const T* buffer) {
  const Operand& o = it.operand[k];
  if (!o.data || tile != buffer) return;  // not asked for, or there already
  walk(it, k, begin, n, [&](int64_t done, int64_t offset, int64_t stride, int64_t length) {
    store(o.dtype, o.data, offset, stride, buffer + done, length);
  });
}

}  // namespace lossreg::cpu
