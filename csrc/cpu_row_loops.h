#pragma once
// The vector loops of the CPU's row kernels: across rows, one class at a time, and along the classes of one row.
#include "cpu_tiles.h"

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
    max[i] = z > max[i] || z != z ? z : max[i];
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
// Both in one pass over memory, where no bias needs the last maximum: what was summed is scaled where the maximum
// rises, so that either way there is one exponential. From the lowest number on, not from -inf: a class of -inf adds
// nothing.
template <class T, class F>
LOSSREG_CLONES void add_class(const F& f, T* max, T* sum, Targets<T> y, const T* x, int32_t c, int64_t n) {
  const F g = f;
  const int32_t* index = y.index;
  const T* own = y.logit;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T z = g.logit(x[i]);
    if constexpr (F::has_margin) {
      const T zi = own[i];
      z = index[i] == c ? zi : z;
    }
    const T m = max[i], s = sum[i];
    const T rise = z - m, e = exp_negative(-abs(rise)), raised = s * e + T(1), added = s + e;
    sum[i] = rise > T(0) ? raised : added;
    max[i] = z > m ? z : m;
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
  T *a, *hit, *rest, *high, *low;  // log-sum-exp = high + low
  const int32_t* index;            // the target class, -1 where there is none
};
template <class T, int Mode, class F>
LOSSREG_CLONES void grad_class(const F& f, Coefficients<T> k, T* out, const T* x, const T* t, T w, int32_t c,
                               int64_t classes, int64_t n) {
  const F g = f;
  const T *a = k.a, *hit = k.hit, *rest = k.rest, *high = k.high, *low = k.low;
  const int32_t* index = k.index;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    // every load outside of the conditions, or the loop stays scalar
    const T ai = a[i], ri = rest[i], hi = hit[i], xi = x[i], ti = t[i];
    T d = T(0);
    if constexpr (F::softmax) {
      T e = (g.logit(xi) - high[i]) - low[i];
      if constexpr (F::has_bias) e += w;
      T ap = ai * exp_negative(e);
      d = ai == T(0) ? T(0) : ap;  // an ignored row stays 0 whatever it holds
    }
    if constexpr (F::uses_shares(Mode)) {
      T ru = ri * g.template share<Mode>(w, ti, classes);
      d -= ri == T(0) ? T(0) : ru;
    }
    if constexpr (F::has_margin) out[i] = index[i] == c ? hi : d;
    else out[i] = d - (index[i] == c ? hi : T(0));
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
// The coefficients of a tile's gradients, from targets, state and the gradient of the result times scale.
template <class T, int Mode, class F>
LOSSREG_CLONES void find_coefficients(const F& f, RowArrays<T> r, const double* lse, const T* grad, T scale, T* a,
                                      T* hit, T* rest, T* high, T* low, int64_t classes, int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    high[i] = T(lse[i]);
    low[i] = T(lse[i] - double(high[i]));
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

// ---- vectors along the classes of one row

template <class T, class F>
LOSSREG_CLONES T max_of(const F& f, T max, const T* x, const T* w, int64_t n) {
  const F g = f;
  int nan = int(max != max);
#pragma omp simd reduction(max : max) reduction(| : nan)
  for (int64_t i = 0; i < n; i++) {
    T z = g.logit(x[i]);
    if constexpr (F::has_bias) z += w[i];
    max = z > max ? z : max;
    nan |= int(z != z);
  }
  return nan ? T(NAN) : max;
}
template <class T, class F>
LOSSREG_CLONES T sum_exp(const F& f, T max, const T* x, const T* w, int64_t n) {
  const F g = f;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    T e = g.logit(x[i]) - max;
    if constexpr (F::has_bias) e += w[i];
    sum += exp_negative(e);
  }
  return sum;
}
template <class T, int Mode, class F>
LOSSREG_CLONES void sum_shares(const F& f, T* mass, T* dot, T max, const T* x, const T* t, const T* w, int64_t classes,
                               int64_t n) {
  const F g = f;
  T m = 0, d = 0;
#pragma omp simd reduction(+ : m, d)
  for (int64_t c = 0; c < n; c++) {
    T u = g.template share<Mode>(w[c], t[c], classes);
    m += u;
    d += u == T(0) ? T(0) : u * (x[c] - max);
  }
  *mass += m;
  *dot += d;
}
template <class T, int Mode, class F>
LOSSREG_CLONES void grad_row(const F& f, T a, T rest, T high, T low, T* out, const T* x, const T* t, const T* w,
                             int64_t classes, int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t c = 0; c < n; c++) {
    T d = T(0);
    if constexpr (F::softmax) {
      T e = (g.logit(x[c]) - high) - low;
      if constexpr (F::has_bias) e += w[c];
      d = a * exp_negative(e);
    }
    if constexpr (F::uses_shares(Mode)) d -= rest * g.template share<Mode>(w[c], t[c], classes);
    out[c] = d;
  }
}

}  // namespace lossreg::cpu
