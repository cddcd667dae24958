#pragma once
// The vector loops of the CPU's row kernels: across rows, one class at a time, and along the classes of one row.
#include "../../cpu/tiles.h"

namespace lossreg::cpu {

// ---- vectors across rows: n rows, one class at a time

// The target classes of a tile's rows, -1 where there is none, and with a margin the logits that they have.
template <class T>
struct Targets {
  const int32_t* index;
  const T* logit;
};
// The target class of each row, -1 where there is none. True: one was neither ignored nor a class.
LOSSREG_CLONES inline bool read_classes(const int64_t* t, int64_t ignored, int64_t classes, int32_t* index,
                                        int32_t* valid, int64_t n) {
  int unknown = 0;
#pragma omp simd reduction(| : unknown)
  for (int64_t i = 0; i < n; i++) {
    const bool known = t[i] >= 0 && t[i] < classes, wanted = t[i] != ignored;
    unknown |= int(wanted && !known);
    valid[i] = int32_t(wanted && known);
    index[i] = wanted && known ? int32_t(t[i]) : -1;
  }
  return unknown != 0;
}
template <class T, class F>
LOSSREG_CLONES void raise_max(const F& f, T* max, const T* x, T w, int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T z = g.logit(x[i]);
    if constexpr (F::has_bias) z += w;
    max[i] = z > max[i] ? z : max[i];
  }
}
template <class T, class F>
LOSSREG_CLONES void add_exp(const F& f, T* sum, const T* max, const T* x, T w, int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T e = g.logit(x[i]) - max[i];
    if constexpr (F::has_bias) e += w;  // after max, so that large scores keep their digits
    sum[i] += exp_negative(e);
  }
}
// K more classes of one row into its running maximum and sum: what was summed is scaled where the maximum rises.
template <int K, class T>
HD void add_logits(const T (&z)[K], T& max, T& sum) {
  if constexpr (K == 1) {  // one exponential, whichever of the two it scales
    const T rise = z[0] - max, e = exp_negative(-abs(rise)), raised = sum * e + T(1), added = sum + e;
    sum = rise > T(0) ? raised : added;
    max = z[0] > max ? z[0] : max;
  } else {
    T top = max;
    for (int k = 0; k < K; k++) top = z[k] > top ? z[k] : top;
    T total = sum * exp_negative(max - top);
    for (int k = 0; k < K; k++) total += exp_negative(z[k] - top);
    sum = total;
    max = top;
  }
}
// Classes c to c + K - 1 of n rows, in one pass over memory: K planes are read side by side. A maximum starts at the
// lowest number, not at -inf: a class of -inf adds nothing.
template <int K, class T, class F, class S>
LOSSREG_CLONES void add_classes(const F& f, T* max, T* sum, Targets<T> y, const S* const* x, int32_t c, int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const int32_t* index = y.index;
  const T* own = y.logit;
  const Word<S>* at[K];
  for (int k = 0; k < K; k++) at[k] = words(x[k]);
#pragma omp simd
  for (int64_t i = 0; i < n / L::width; i++) {
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) {
      const int64_t r = i * L::width + l;
      T z[K], m = max[r], s = sum[r];
      for (int k = 0; k < K; k++) {
        z[k] = g.logit(L::template get<T>(at[k][i], l));
        if constexpr (F::has_margin) {
          const T zi = own[r];
          z[k] = index[r] == c + k ? zi : z[k];
        }
      }
      add_logits<K>(z, m, s);
      max[r] = m;
      sum[r] = s;
    }
  }
  if (n % L::width) {
    T z[K];
    for (int k = 0; k < K; k++)
      z[k] = F::has_margin && index[n - 1] == c + k ? own[n - 1] : g.logit(widen<T>(x[k][n - 1]));
    add_logits<K>(z, max[n - 1], sum[n - 1]);
  }
}
template <class T, class F>
LOSSREG_CLONES void target_logits(const F& f, T* logit, const T* x, int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) logit[i] = g.target_logit(x[i]);
}
// A sum whose maximum is infinite is that of inf - inf.
template <class T>
LOSSREG_CLONES void log_all(T* sum, const T* max, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const T y = log(sum[i]);
    sum[i] = max[i] == T(INFINITY) ? T(NAN) : y;
  }
}
template <class T, int Mode, class F>
LOSSREG_CLONES void add_shares(const F& f, T* mass, T* dot, const T* max, const T* x, const T* t, T w, int64_t classes,
                               int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T u = g.template share<Mode>(w, t[i], classes);
    mass[i] += u;
    dot[i] += u == T(0) ? T(0) : u * (x[i] - max[i]);
  }
}

// What the gradient of a row in its scores is made of: a p_c - rest u_c - hit [c = y]; with a margin hit is the
// target's whole gradient.
template <class T>
struct Coefficients {
  T *a, *hit, *rest, *high, *low;  // log-sum-exp = high + low: the greatest score, and the rest
  const int32_t* index;            // the target class, -1 where there is none
};
// The slope of one score, but for the target class's own part. rest: what the spread adds.
template <class T, int Mode, class F>
HD T score_slope(const F& g, T a, T rest, T high, T low, T x, T t, T w, int64_t classes) {
  T d = T(0);
  if constexpr (F::softmax) {
    T e = (g.logit(x) - high) - low;
    if constexpr (F::has_bias) e += w;
    T ap = a * exp_negative(e);
    d = a == T(0) ? T(0) : ap;  // an ignored row stays 0 whatever it holds
  }
  if constexpr (F::uses_shares(Mode)) {
    T ru = rest * g.template share<Mode>(w, t, classes);
    d -= rest == T(0) ? T(0) : ru;
  }
  return d;
}
// Of classes c to c + K - 1: scores x, what lies beside them t, weights w.
template <int K, class T, int Mode, class F, class S>
LOSSREG_CLONES void grad_classes(const F& f, Coefficients<T> k, S* const* out, const S* const* x, const S* const* t,
                                 const T* w, int32_t c, int64_t classes, int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const T *a = k.a, *hit = k.hit, *rest = k.rest, *high = k.high, *low = k.low;
  const int32_t* index = k.index;
  const Word<S>*score[K], *beside[K];
  Word<S>* to[K];
  T weight[K];
  for (int j = 0; j < K; j++) score[j] = words(x[j]), beside[j] = words(t[j]), to[j] = words(out[j]), weight[j] = w[j];
  auto slope = [&](int64_t r, int j, T xi, T ti) {
    // every load outside of the conditions, or the loop stays scalar
    const T ai = a[r], ri = rest[r], hi = hit[r], lse = high[r], digits = low[r];
    const T d = score_slope<T, Mode>(g, ai, ri, lse, digits, xi, ti, weight[j], classes);
    return index[r] == c + j ? (F::has_margin ? hi : d - hi) : d;
  };
#pragma omp simd
  for (int64_t i = 0; i < n / L::width; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < K; j++) {
      T d[L::width];
#pragma GCC unroll 2
      for (int l = 0; l < L::width; l++)
        d[l] = slope(i * L::width + l, j, L::template get<T>(score[j][i], l), L::template get<T>(beside[j][i], l));
      to[j][i] = L::of(d);
    }
  }
  if (n % L::width)
    for (int j = 0; j < K; j++)
      out[j][n - 1] = Narrow<S>::from(slope(n - 1, j, widen<T>(x[j][n - 1]), widen<T>(t[j][n - 1])));
}
// Class c of a gradient that is 0 but at the target. Of 16-bit formats the bits: GCC makes no vector of structs.
template <class S>
LOSSREG_CLONES void scatter_class(S* out, const S* own, const int32_t* index, int32_t c, int64_t n) {
  using Bits = std::conditional_t<sizeof(S) == 2, uint16_t, S>;
  Bits* to = reinterpret_cast<Bits*>(out);
  const Bits* from = reinterpret_cast<const Bits*>(own);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const Bits s = from[i];
    to[i] = index[i] == c ? s : Bits(0);
  }
}

// The losses of a tile's rows from their statistics, and the sums of loss and normaliser.
template <class T>
struct RowArrays {
  const T *max, *log_sum, *mass, *dot, *score, *logit, *weight;  // score and logit: of the target class
  const int32_t* index;                                          // the target class, -1 where there is none
  const int32_t* valid;
};
template <class T, int Mode, class F>
LOSSREG_CLONES void finish_rows(const F& f, RowArrays<T> r, T* loss, double* sums, int64_t classes, int64_t n) {
  const F g = f;
  double total = 0, normaliser = 0;
#pragma omp simd reduction(+ : total, normaliser)
  for (int64_t i = 0; i < n; i++) {
    Row<T> row{T(0), T(0), T(0), r.weight[i], classes};
    T nll = F::softmax ? r.log_sum[i] - (r.logit[i] - r.max[i]) : -r.logit[i];
    row.nll = r.index[i] < 0 ? T(0) : nll;
    if constexpr (F::uses_shares(Mode)) {
      row.mass = r.mass[i];
      row.spread = r.mass[i] * r.log_sum[i] - r.dot[i];
    }
    T value = g.template value<Mode>(row), part = g.template normaliser<Mode>(row);
    loss[i] = r.valid[i] ? value : T(0);
    total += double(loss[i]);
    normaliser += double(r.valid[i] ? part : T(0));
  }
  sums[0] += total;
  sums[1] += normaliser;
}
// The coefficients of a tile's gradients, from targets, state and the gradient of the result times scale. high, low:
// read where there is a softmax.
template <class T, int Mode, class F>
LOSSREG_CLONES void find_coefficients(const F& f, RowArrays<T> r, const T* high, const T* low, const T* grad, T scale,
                                      T* a, T* hit, T* rest, int64_t classes, int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    Row<T> row{T(0), T(0), F::uses_shares(Mode) ? r.mass[i] : T(0), r.weight[i], classes};
    T nll = F::softmax ? low[i] + (high[i] - r.logit[i]) : -r.logit[i];
    row.nll = r.index[i] < 0 ? T(0) : nll;
    Slopes<T> s = g.template slopes<Mode>(row);
    T factor = grad[i] * scale;
    if constexpr (F::has_margin) {
      const T slope = g.target_slope(r.score[i]), part = factor * s.nll;
      a[i] = r.valid[i] ? part * T(g.scale) : T(0);
      hit[i] = r.valid[i] ? -part * slope * one_minus_exp(row.nll) : T(0);
    } else {
      a[i] = r.valid[i] ? factor * (s.nll + s.spread * row.mass) : T(0);
      hit[i] = r.valid[i] ? factor * s.nll : T(0);
    }
    rest[i] = r.valid[i] ? factor * s.spread : T(0);
  }
}

// ---- vectors along the classes of one row; S: what memory holds

// Passes NaN by: the sum of exponentials finds it.
template <class T, class F, class S>
LOSSREG_CLONES T max_of(const F& f, T max, const S* x, const T* w, int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const Word<S>* at = words(x);
#pragma omp simd reduction(max : max)
  for (int64_t i = 0; i < n / L::width; i++) {
    T top[L::width];
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) {
      top[l] = g.logit(L::template get<T>(at[i], l));
      if constexpr (F::has_bias) top[l] += w[i * L::width + l];
    }
    // those of a word first: the running maximum waits for one comparison
    const T z = top[0] > top[L::width - 1] ? top[0] : top[L::width - 1];
    max = z > max ? z : max;
  }
  if (n % L::width) {
    T z = g.logit(widen<T>(x[n - 1]));
    if constexpr (F::has_bias) z += w[n - 1];
    max = z > max ? z : max;
  }
  return max;
}
template <class T, class F, class S>
LOSSREG_CLONES T sum_exp(const F& f, T max, const S* x, const T* w, int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const Word<S>* at = words(x);
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n / L::width; i++) {
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) {
      T e = g.logit(L::template get<T>(at[i], l)) - max;
      if constexpr (F::has_bias) e += w[i * L::width + l];
      sum += exp_negative(e);
    }
  }
  if (n % L::width) {
    T e = g.logit(widen<T>(x[n - 1])) - max;
    if constexpr (F::has_bias) e += w[n - 1];
    sum += exp_negative(e);
  }
  return sum;
}
template <class T, int Mode, class F>
HD void add_share(const F& g, T& mass, T& dot, T max, T x, T t, T w, int64_t classes) {
  T u = g.template share<Mode>(w, t, classes);
  mass += u;
  dot += u == T(0) ? T(0) : u * (x - max);
}
template <class T, int Mode, class F, class S>
LOSSREG_CLONES void sum_shares(const F& f, T* mass, T* dot, T max, const S* x, const S* t, const T* w, int64_t classes,
                               int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const Word<S>*at = words(x), *to = words(t);
  T m = 0, d = 0;
#pragma omp simd reduction(+ : m, d)
  for (int64_t i = 0; i < n / L::width; i++) {
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++)
      add_share<T, Mode>(g, m, d, max, L::template get<T>(at[i], l), L::template get<T>(to[i], l), w[i * L::width + l],
                         classes);
  }
  if (n % L::width) add_share<T, Mode>(g, m, d, max, widen<T>(x[n - 1]), widen<T>(t[n - 1]), w[n - 1], classes);
  *mass += m;
  *dot += d;
}
template <class T, int Mode, class F, class S>
LOSSREG_CLONES void grad_row(const F& f, T a, T rest, T high, T low, S* out, const S* x, const S* t, const T* w,
                             int64_t classes, int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const Word<S>*at = words(x), *to = words(t);
  Word<S>* result = words(out);
#pragma omp simd
  for (int64_t i = 0; i < n / L::width; i++) {
    T d[L::width];
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++)
      d[l] = score_slope<T, Mode>(g, a, rest, high, low, L::template get<T>(at[i], l), L::template get<T>(to[i], l),
                                  w[i * L::width + l], classes);
    result[i] = L::of(d);
  }
  if (n % L::width) {
    T d = score_slope<T, Mode>(g, a, rest, high, low, widen<T>(x[n - 1]), widen<T>(t[n - 1]), w[n - 1], classes);
    out[n - 1] = Narrow<S>::from(d);
  }
}

}  // namespace lossreg::cpu
