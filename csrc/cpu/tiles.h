#pragma once
// The CPU's tiles: pieces of the index space that stay in L1, and one vector loop a formula over them.
//
// A tile is brought into arrays of the type that is computed in, unless it lies in memory as such already; so the
// vector loop is compiled once a formula and not once a dtype, and strides cost a gather and nothing else.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../base/tensor.h"
#include "../skeletons/formula.h"
#include "lanes.h"

// One clone of each vector loop a generation of x86; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(LOSSREG_NO_CLONES)
#define LOSSREG_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#else
#define LOSSREG_CLONES __attribute__((noinline))
#endif

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
// type to compute in: it is read where it lies, see is_stream.)
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
bool is_stream(const Iteration<N>& it, int first) {
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

// A result of so many bytes drives everything else out of the caches, and itself before anybody reads it: stores past
// them then save reading first what they overwrite.
constexpr int64_t kStreamed = int64_t(32) << 20;
constexpr int64_t kLine = 64;  // bytes
#if defined(__x86_64__)
// Lines that begin `step` bytes after each other, into memory. A whole line a store: in four parts it takes half as
// long again.
__attribute__((target("avx512f"))) inline void stream_lines_avx512(char* to, const char* from, int64_t step,
                                                                   int64_t lines) {
  for (int64_t i = 0; i < lines; i++)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i * kLine), _mm512_loadu_si512(from + i * step));
}
inline void stream_lines_sse2(char* to, const char* from, int64_t step, int64_t lines) {
  for (int64_t i = 0; i < lines; i++)
    for (int64_t part = 0; part < kLine; part += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i * kLine + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * step + part)));
}
inline void stream_lines(char* to, const char* from, int64_t step, int64_t lines) {
  static const bool wide = __builtin_cpu_supports("avx512f");
  if (wide) stream_lines_avx512(to, from, step, lines);
  else stream_lines_sse2(to, from, step, lines);
}
#else
inline void stream_lines(char* to, const char* from, int64_t step, int64_t lines) {
  for (int64_t i = 0; i < lines; i++) std::memcpy(to + i * kLine, from + i * step, kLine);
}
#endif
// Bytes into memory, past the caches but for those of half a line at the ends; without `from`, zeros.
inline void stream_bytes(char* to, const char* from, int64_t n) {
  alignas(kLine) static const char zeros[kLine] = {};
  auto plainly = [&](int64_t at, int64_t count) {
    if (from) std::memcpy(to + at, from + at, size_t(count));
    else std::memset(to + at, 0, size_t(count));
  };
  int64_t head = std::min(n, int64_t(-reinterpret_cast<uintptr_t>(to) % kLine)), lines = (n - head) / kLine;
  plainly(0, head);
  stream_lines(to + head, from ? from + head : zeros, from ? kLine : 0, lines);
  plainly(head + lines * kLine, n - head - lines * kLine);
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

// One thread that is all of its team (csrc/cuda/launch.h has the GPU's): body(i, team) is the same text on both.
struct Team {
  HD int64_t rank() const { return 0; }
  HD int64_t size() const { return 1; }
  HD void sync() const {}
  template <class T>
  HD T sum(T value) const {
    return value;
  }
  template <class T>
  HD T max(T value) const {
    return value;
  }
  // The sum over the threads of a lower rank.
  template <class T>
  HD T before(T) const {
    return T(0);
  }
  template <class Body>
  HD void each(int64_t n, Body body) const {
#pragma omp simd
    for (int64_t k = 0; k < n; k++) body(k);
  }
  template <class Body>
  HD auto sum(int64_t n, Body body) const {
    decltype(body(n)) total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t k = 0; k < n; k++) total += body(k);
    return total;
  }
};
template <class Body>
LOSSREG_CLONES void each_loop(Body body, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) body(i);
}
template <class Body>
LOSSREG_CLONES void team_loop(Body body, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) body(i, Team{});
}
template <int K, class Body>
LOSSREG_CLONES void total_loop(Body body, int64_t begin, int64_t end, double (&sums)[K]) {
  for (int64_t i = begin; i < end; i++) body(i, sums);
}

}  // namespace lossreg::cpu
