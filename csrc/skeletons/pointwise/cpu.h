#pragma once
// The pointwise kernels on the CPU: one vector loop a formula, over tiles of the operands.
#include <atomic>

#include "../../base/special.h"
#include "../../cpu/chunks.h"
#include "../../cpu/tiles.h"

namespace lossreg::cpu {

// Can the loops take the operands from `first` on as S without conversion? Each of them lies in memory as S in order,
// or is one S, or is absent.
template <class S, int N>
bool is_stored_as(const Iteration<N>& it, int first) {
  for (int k = first; k < N; k++) {
    const Operand& o = it.operand[k];
    if (o.data && (o.dtype != dtype_of_storage<S> || !(o.flat || o.uniform))) return false;
  }
  return true;
}
// Do all of them lie in memory as S in order? Then the loops need no buffers.
template <class S, int N>
bool is_unbroken(const Iteration<N>& it, int first) {
  for (int k = first; k < N; k++) {
    const Operand& o = it.operand[k];
    if (!o.data || !o.flat || o.uniform || o.dtype != dtype_of_storage<S>) return false;
  }
  return true;
}

// A formula's body, of floats, that computes in Lean: for what memory holds as bfloat16.
template <class Body>
struct InLean {
  Body body;
  template <int I, int O>
  HD void operator()(const float (&x)[I], float (&y)[O]) const {
    Lean a[I], b[O];
    for (int k = 0; k < I; k++) a[k] = Lean(x[k]);
    body(a, b);
    for (int k = 0; k < O; k++) y[k] = float(b[k]);
  }
};
// The body as the loops call it beside elements that memory holds as S.
template <class S, class Body>
auto computed(Body body) {
  if constexpr (std::is_same_v<S, BFloat16>) return InLean<Body>{body};
  else return body;
}

// The loops compute in T what memory holds as S: T itself, or bfloat16. An odd element at the end, which fills no word,
// is taken alone.

// Writes body(x) for each element. Fixed: the first input is one number, `first`.
template <class T, int I, int O, bool Fixed = false, class Body, class S>
LOSSREG_CLONES void map_loop(Body body, T first, const S* const* in, S* const* out, int64_t n) {
  using L = Lane<S>;
  const Word<S>* x[I];
  Word<S>* y[O];
  for (int k = Fixed ? 1 : 0; k < I; k++) x[k] = words(in[k]);
  for (int k = 0; k < O; k++) y[k] = words(out[k]);
  if constexpr (L::width == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      T a[I], c[O];
      if constexpr (Fixed) a[0] = first;
      for (int k = Fixed ? 1 : 0; k < I; k++) a[k] = L::template get<T>(x[k][i], 0);
      body(a, c);
      for (int k = 0; k < O; k++) y[k][i] = c[k];
    }
  } else {
    alignas(64) float half[O][L::width][kWords];
    for (int64_t done = 0; done < n / L::width; done += kWords) {
      const int64_t m = std::min(kWords, n / L::width - done);
#pragma omp simd
      for (int64_t i = 0; i < m; i++) {
#pragma GCC unroll 2
        for (int l = 0; l < L::width; l++) {
          T a[I], c[O];
          if constexpr (Fixed) a[0] = first;
          for (int k = Fixed ? 1 : 0; k < I; k++) a[k] = L::template get<T>(x[k][done + i], l);
          body(a, c);
          for (int k = 0; k < O; k++) half[k][l][i] = c[k];
        }
      }
      for (int k = 0; k < O; k++) round_words(half[k][0], half[k][1], y[k] + done, m);
    }
    if (n % L::width) {
      T a[I], c[O];
      if constexpr (Fixed) a[0] = first;
      for (int k = Fixed ? 1 : 0; k < I; k++) a[k] = widen<T>(in[k][n - 1]);
      body(a, c);
      for (int k = 0; k < O; k++) out[k][n - 1] = Narrow<S>::from(c[k]);
    }
  }
}
// Sums body(x) over the elements.
template <class T, int I, class Body, class S>
LOSSREG_CLONES T sum_loop(Body body, const S* const* in, int64_t n) {
  using L = Lane<S>;
  const Word<S>* x[I];
  for (int k = 0; k < I; k++) x[k] = words(in[k]);
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n / L::width; i++) {
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) {
      T a[I], b[1];
      for (int k = 0; k < I; k++) a[k] = L::template get<T>(x[k][i], l);
      body(a, b);
      sum += b[0];
    }
  }
  if (n % L::width) {
    T a[I], b[1];
    for (int k = 0; k < I; k++) a[k] = widen<T>(in[k][n - 1]);
    body(a, b);
    sum += b[0];
  }
  return sum;
}
// Sums value(x) and writes grad(x), where the gradient of the sum is `first`: what both need is computed once.
template <class T, int I, class Value, class Grad, class S>
LOSSREG_CLONES T sum_and_map_loop(Value value, Grad grad, T first, const S* const* in, S* out, int64_t n) {
  using L = Lane<S>;
  const Word<S>* x[I];
  for (int k = 0; k < I; k++) x[k] = words(in[k]);
  Word<S>* y = words(out);
  T sum = 0;
  if constexpr (L::width == 1) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      T a[I], g[I + 1], v[1], d[1];
      g[0] = first;
      for (int k = 0; k < I; k++) g[k + 1] = a[k] = L::template get<T>(x[k][i], 0);
      value(a, v);
      grad(g, d);
      sum += v[0];
      y[i] = d[0];
    }
  } else {
    alignas(64) float half[L::width][kWords];
    for (int64_t done = 0; done < n / L::width; done += kWords) {
      const int64_t m = std::min(kWords, n / L::width - done);
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < m; i++) {
#pragma GCC unroll 2
        for (int l = 0; l < L::width; l++) {
          T a[I], g[I + 1], v[1], d[1];
          g[0] = first;
          for (int k = 0; k < I; k++) g[k + 1] = a[k] = L::template get<T>(x[k][done + i], l);
          value(a, v);
          grad(g, d);
          sum += v[0];
          half[l][i] = d[0];
        }
      }
      round_words(half[0], half[1], y + done, m);
    }
    if (n % L::width) {
      T a[I], g[I + 1], v[1], d[1];
      g[0] = first;
      for (int k = 0; k < I; k++) g[k + 1] = a[k] = widen<T>(in[k][n - 1]);
      value(a, v);
      grad(g, d);
      sum += v[0];
      out[n - 1] = Narrow<S>::from(d[0]);
    }
  }
  return sum;
}
// Is one of the elements wanted?
template <class T, class Wanted, class S>
LOSSREG_CLONES bool any_loop(Wanted wanted, const S* x, int64_t n) {
  using L = Lane<S>;
  const Word<S>* word = words(x);
  int any = n % L::width ? int(wanted(widen<T>(x[n - 1]))) : 0;
#pragma omp simd reduction(| : any)
  for (int64_t i = 0; i < n / L::width; i++) {
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) any |= int(wanted(L::template get<T>(word[i], l)));
  }
  return any != 0;
}

struct PointwiseKernels {
  template <class T, int I, int O, Sweep sweep = Sweep::forward, class Body>
  static void map(const Iteration<I + O>& it, Body body) {
    if constexpr (std::is_same_v<T, float>) {
      // the gradient of a reduced loss is one number, of any dtype
      if (I > 1 && it.operand[0].uniform && is_stored_as<BFloat16>(it, 1))
        return map_of<T, BFloat16, I, O, sweep, (I > 1)>(it, computed<BFloat16>(body));
      if (is_stored_as<BFloat16>(it, 0)) return map_of<T, BFloat16, I, O, sweep>(it, computed<BFloat16>(body));
    }
    map_of<T, T, I, O, sweep>(it, body);
  }

  template <class T, int I, int O, class Body>
  static void map_many(const std::vector<Iteration<I + O>>& many, Body body) {
    for (const auto& it : many) map<T, I, O>(it, body);
  }

  template <class T, int I, class Body>
  static void sum(const Iteration<I>& it, Body body, double scale, const Tensor& out, DType dtype) {
    double total = 0;
    with_stored<T>(it, [&](auto* tag) { total = sum_of<T, std::remove_pointer_t<decltype(tag)>>(it, body); });
    write_scalar(out, dtype, total * scale);
  }

  template <class T, int I, class Value, class Grad>
  static void sum_and_map(const Iteration<I + 1>& it, Value value, Grad grad, double scale, const Tensor& out,
                          DType dtype) {
    double total[1];
    with_stored<T>(it, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      sum_chunks(it.numel, kChunk, total, [&](int64_t begin, int64_t end, double (&own)[1]) {
        Buffers<S, I + 1> buffers(it, 0, I);
        for (int64_t b = begin; b < end; b += kTile) {
          int64_t n = std::min(kTile, end - b);
          const S* in[I];
          for (int k = 0; k < I; k++) in[k] = read_tile(it, k, b, n, buffers.at[k]);
          S* to = result_tile(it, I, b, buffers.at[I]);
          own[0] += double(sum_and_map_loop<T, I>(computed<S>(value), computed<S>(grad), T(1), in, to, n));
          write_tile(it, I, b, n, to, buffers.at[I]);
        }
      });
    });
    write_scalar(out, dtype, total[0] * scale);
  }

  template <class T, class Wanted>
  static std::optional<T> find(const Iteration<1>& it, Wanted wanted) {
    std::atomic<bool> found{false};
    T which = 0;
    with_stored<T>(it, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      each_chunk<Sweep::forward>(it.numel, kChunk, [&](int64_t, int64_t begin, int64_t end) {
        Buffers<S, 1> buffers(it, 0, 1);
        for (int64_t b = begin; b < end; b += kTile) {
          int64_t n = std::min(kTile, end - b);
          const S* x = read_tile(it, 0, b, n, buffers.at[0]);
          if (!any_loop<T>(wanted, x, n)) continue;
          for (int64_t i = 0; i < n; i++)
            if (wanted(widen<T>(x[i])) && !found.exchange(true)) which = widen<T>(x[i]);
        }
      });
    });
    return found ? std::optional<T>(which) : std::nullopt;
  }

 private:
  // Calls use(S*) with the type that the loops read: bfloat16 where memory holds nothing else, else T.
  template <class T, int N, class Use>
  static void with_stored(const Iteration<N>& it, Use use) {
    if constexpr (std::is_same_v<T, float>)
      if (is_stored_as<BFloat16>(it, 0)) return use(static_cast<BFloat16*>(nullptr));
    use(static_cast<T*>(nullptr));
  }
  // Fixed: the first input is one number.
  template <class T, class S, int I, int O, Sweep sweep, bool Fixed = false, class Body>
  static void map_of(const Iteration<I + O>& it, Body body) {
    const T first = Fixed ? one_number<T>(it.operand[0]) : T(0);
    constexpr int from = Fixed ? 1 : 0;
    // without buffers there is no need of tiles
    const int64_t tile = is_unbroken<S>(it, from) ? kChunk : kTile;
    each_chunk<sweep>(it.numel, kChunk, [&](int64_t, int64_t begin, int64_t end) {
      Buffers<S, I + O> buffers(it, from, I);
      for (int64_t b = begin; b < end; b += tile) {
        int64_t n = std::min(tile, end - b);
        const S* in[I];
        S* out[O];
        for (int k = from; k < I; k++) in[k] = read_tile(it, k, b, n, buffers.at[k]);
        for (int k = 0; k < O; k++) out[k] = result_tile(it, I + k, b, buffers.at[I + k]);
        map_loop<T, I, O, Fixed>(body, first, in, out, n);
        for (int k = 0; k < O; k++) write_tile(it, I + k, b, n, out[k], buffers.at[I + k]);
      }
    });
  }
  template <class T, class S, int I, class Body>
  static double sum_of(const Iteration<I>& it, Body body) {
    double total[1];
    sum_chunks(it.numel, kChunk, total, [&](int64_t begin, int64_t end, double (&own)[1]) {
      Buffers<S, I> buffers(it, 0, I);
      for (int64_t b = begin; b < end; b += kTile) {
        int64_t n = std::min(kTile, end - b);
        const S* in[I];
        for (int k = 0; k < I; k++) in[k] = read_tile(it, k, b, n, buffers.at[k]);
        own[0] += double(sum_loop<T, I>(computed<S>(body), in, n));
      }
    });
    return total[0];
  }
};

}  // namespace lossreg::cpu
