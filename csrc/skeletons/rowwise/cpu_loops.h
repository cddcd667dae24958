#pragma once
// The vector loops of the CPU's row kernels: across rows, one class at a time, and along the classes of one row. Every
// loop reads and writes; the mathematics is that of formula.h.
#include "../../cpu/tiles.h"
#include "formula.h"

namespace lossreg::cpu {

// ---- rows whose classes lie side by side, turned into planes and back

// A 4x4 block of numbers in four registers, the rows of `from` as the columns of `to`.
template <class T>
HD void turn_block(const T* from, int64_t from_step, T* to, int64_t to_step) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), may_alias));
  const auto at = [&](int k) { return reinterpret_cast<const Four*>(from + k * from_step); };
  const Four a = *at(0), b = *at(1), c = *at(2), d = *at(3);
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const auto put = [&](int k) { return reinterpret_cast<Four*>(to + k * to_step); };
  *put(0) = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  *put(1) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  *put(2) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  *put(3) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}
// to[c * to_step + i] = from[i * from_step + c]
template <class T>
LOSSREG_CLONES void turn(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows, int64_t classes) {
  const int64_t whole_rows = rows / 4 * 4, whole_classes = classes / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4) {
    const T* row = from + i * from_step;
    for (int64_t c = 0; c < whole_classes; c += 4) turn_block(row + c, from_step, to + c * to_step + i, to_step);
    for (int64_t c = whole_classes; c < classes; c++)
      for (int64_t k = 0; k < 4; k++) to[c * to_step + i + k] = row[k * from_step + c];
  }
  for (int64_t i = whole_rows; i < rows; i++)
    for (int64_t c = 0; c < classes; c++) to[c * to_step + i] = from[i * from_step + c];
}

// ---- vectors across rows: n rows, one class at a time

// The target classes of rows next to each other, -1 where there is none, and with a margin the logits that they have.
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
    max[i] = greater(max[i], z);
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
// Classes c to c + K - 1 of n rows, in one pass over memory: the scores x[k] of K classes are read side by side.
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
      add_exponentials<K>(m, s, z);
      max[r] = m;
      sum[r] = s;
    }
  }
  if (n % L::width) {
    T z[K];
    for (int k = 0; k < K; k++)
      z[k] = F::has_margin && index[n - 1] == c + k ? own[n - 1] : g.logit(widen<T>(x[k][n - 1]));
    add_exponentials<K>(max[n - 1], sum[n - 1], z);
  }
}
template <class T, class F>
LOSSREG_CLONES void target_logits(const F& f, T* logit, const T* x, int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) logit[i] = g.target_logit(x[i]);
}
template <class T>
LOSSREG_CLONES void log_all(T* sum, const T* max, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) sum[i] = log_of_sum(sum[i], max[i]);
}
// Adds the share of one class, of probability t and weight w, whose logit lies `below` the greatest. By reference: a
// loop that sums in a struct, or in what a lambda captures, stays scalar.
template <class T, int Mode, class F>
HD void add_share(const F& f, T& mass, T& dot, T below, T t, T w, int64_t classes) {
  Shares<T> s{mass, dot};
  s.add(f.template share<Mode>(w, t, classes), below);
  mass = s.mass;
  dot = s.dot;
}
// One class of n rows: its scores x, its probabilities t, its weight w.
template <class T, int Mode, class F>
LOSSREG_CLONES void add_shares(const F& f, T* mass, T* dot, const T* max, const T* x, const T* t, T w, int64_t classes,
                               int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) add_share<T, Mode>(g, mass[i], dot[i], g.logit(x[i]) - max[i], t[i], w, classes);
}

// What n rows next to each other know of their gradients; index is the target class, -1 where there is none.
template <class T>
struct CoefficientArrays {
  T *a, *hit, *rest, *high, *low;
  const int32_t* index;
};
// score_slope of one score x. t: the target's probability of that class, w: its entry in the class tensor.
template <class T, int Mode, class F>
HD T slope_of_score(const F& f, RowCoefficients<T> k, LogSum<T> lse, T x, T t, T w, int64_t classes) {
  return score_slope<Mode>(f, k, lse, x, w, f.template share<Mode>(w, t, classes));
}
// The gradients in the scores x of classes c to c + K - 1, with the target's probabilities t and the class tensor's
// entries w.
template <int K, class T, int Mode, class F, class S>
LOSSREG_CLONES void grad_classes(const F& f, CoefficientArrays<T> k, S* const* out, const S* const* x,
                                 const S* const* t, const T* w, int32_t c, int64_t classes, int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const T *a = k.a, *hit = k.hit, *rest = k.rest, *high = k.high, *low = k.low;
  const int32_t* index = k.index;
  const Word<S>*score[K], *probability[K];
  Word<S>* to[K];
  T weight[K];
  for (int j = 0; j < K; j++)
    score[j] = words(x[j]), probability[j] = words(t[j]), to[j] = words(out[j]), weight[j] = w[j];
  auto slope = [&](int64_t r, int j, T xi, T ti) {
    // every load outside of the conditions, or the loop stays scalar
    const RowCoefficients<T> of_row{a[r], hit[r], rest[r]};
    const LogSum<T> lse{high[r], low[r]};
    const T d = slope_of_score<T, Mode>(g, of_row, lse, xi, ti, weight[j], classes);
    return index[r] == c + j ? target_score_slope(g, d, of_row.hit, xi) : d;
  };
  if constexpr (L::width == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
#pragma GCC unroll 8
      for (int j = 0; j < K; j++) to[j][i] = slope(i, j, T(score[j][i]), T(probability[j][i]));
    }
  } else {
    constexpr int64_t at_once = kWords / K;
    alignas(64) float half[K][L::width][at_once];
    for (int64_t done = 0; done < n / L::width; done += at_once) {
      const int64_t m = std::min(at_once, n / L::width - done);
#pragma omp simd
      for (int64_t i = 0; i < m; i++) {
#pragma GCC unroll 8
        for (int j = 0; j < K; j++) {
#pragma GCC unroll 2
          for (int l = 0; l < L::width; l++)
            half[j][l][i] = slope((done + i) * L::width + l, j, L::template get<T>(score[j][done + i], l),
                                  L::template get<T>(probability[j][done + i], l));
        }
      }
      for (int j = 0; j < K; j++) round_words(half[j][0], half[j][1], to[j] + done, m);
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

// What n rows next to each other are measured by; score, logit and weight are those of the target class.
template <class T>
struct RowArrays {
  const T *mass, *dot, *score, *logit, *weight;
  const int32_t* index;  // the target class, -1 where there is none
  const int32_t* valid;

  HD Target<T> target(int64_t i) const { return {valid[i] != 0, index[i] >= 0, score[i], logit[i], weight[i]}; }
  HD Shares<T> shares(int64_t i) const { return {mass[i], dot[i]}; }
};
// The losses of the rows, and what they add to the sums of loss and normaliser.
template <class T, int Mode, class F>
LOSSREG_CLONES void finish_rows(const F& f, RowArrays<T> r, const T* high, const T* low, T* loss, double* sums,
                                int64_t classes, int64_t n) {
  const F g = f;
  double total = 0, normaliser = 0;
#pragma omp simd reduction(+ : total, normaliser)
  for (int64_t i = 0; i < n; i++) {
    const RowLoss<T> of_row = row_loss<Mode>(g, LogSum<T>{high[i], low[i]}, r.shares(i), r.target(i), classes);
    loss[i] = of_row.value;
    total += double(of_row.value);
    normaliser += double(of_row.normaliser);
  }
  sums[0] += total;
  sums[1] += normaliser;
}
// The coefficients of the rows' gradients, from the gradient of the result times scale.
template <class T, int Mode, class F>
LOSSREG_CLONES void find_coefficients(const F& f, RowArrays<T> r, const T* high, const T* low, const T* grad, T scale,
                                      T* a, T* hit, T* rest, int64_t classes, int64_t n) {
  const F g = f;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const RowCoefficients<T> k =
        row_coefficients<Mode>(g, LogSum<T>{high[i], low[i]}, r.shares(i), r.target(i), classes, grad[i] * scale);
    a[i] = k.a;
    hit[i] = k.hit;
    rest[i] = k.rest;
  }
}

// ---- vectors along the classes of one row; S: what memory holds

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
    // the two of a word first, so that the running maximum waits for one comparison
    max = greater(max, L::width == 1 ? top[0] : greater(top[L::width - 1], top[0]));
  }
  if (n % L::width) {
    T z = g.logit(widen<T>(x[n - 1]));
    if constexpr (F::has_bias) z += w[n - 1];
    max = greater(max, z);
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
// The same, and each exponential into `terms`: those of the words' first elements, then those of their second ones.
template <class T, class F, class S>
LOSSREG_CLONES T sum_terms(const F& f, T max, const S* x, T* terms, int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const Word<S>* at = words(x);
  const int64_t count = n / L::width;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) {
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) {
      const T e = exp_negative(g.logit(L::template get<T>(at[i], l)) - max);
      terms[l * count + i] = e;
      sum += e;
    }
  }
  if (n % L::width) sum += terms[n - 1] = exp_negative(g.logit(widen<T>(x[n - 1])) - max);
  return sum;
}
// factor times each term, as the gradient.
template <class T, class S>
LOSSREG_CLONES void grad_of_terms(T factor, S* out, const T* terms, int64_t n) {
  using L = Lane<S>;
  Word<S>* result = words(out);
  const int64_t count = n / L::width;
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    T d[L::width];
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) d[l] = factor * terms[l * count + i];
    result[i] = L::of(d);
  }
  if (n % L::width) out[n - 1] = Narrow<S>::from(factor * terms[n - 1]);
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
      add_share<T, Mode>(g, m, d, g.logit(L::template get<T>(at[i], l)) - max, L::template get<T>(to[i], l),
                         w[i * L::width + l], classes);
  }
  if (n % L::width)
    add_share<T, Mode>(g, m, d, g.logit(widen<T>(x[n - 1])) - max, widen<T>(t[n - 1]), w[n - 1], classes);
  *mass += m;
  *dot += d;
}
// The weight of a class, for a formula that asks for one in a score's slope; else there may be no weights to read.
template <int Mode, class F, class T>
HD T weight_at([[maybe_unused]] const T* w, [[maybe_unused]] int64_t c) {
  if constexpr (F::has_bias || F::uses_shares(Mode)) return w[c];
  else return T(1);
}
template <class T, int Mode, class F, class S>
LOSSREG_CLONES void grad_row(const F& f, RowCoefficients<T> k, LogSum<T> lse, S* out, const S* x, const S* t,
                             const T* w, int64_t classes, int64_t n) {
  using L = Lane<S>;
  const F g = f;
  const Word<S>*at = words(x), *to = words(t);
  Word<S>* result = words(out);
  if constexpr (L::width == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
      result[i] = slope_of_score<T, Mode>(g, k, lse, T(at[i]), T(to[i]), weight_at<Mode, F>(w, i), classes);
  } else {
    alignas(64) float half[L::width][kWords];
    for (int64_t done = 0; done < n / L::width; done += kWords) {
      const int64_t m = std::min(kWords, n / L::width - done);
#pragma omp simd
      for (int64_t i = 0; i < m; i++) {
#pragma GCC unroll 2
        for (int l = 0; l < L::width; l++)
          half[l][i] = slope_of_score<T, Mode>(g, k, lse, L::template get<T>(at[done + i], l),
                                               L::template get<T>(to[done + i], l),
                                               weight_at<Mode, F>(w, (done + i) * L::width + l), classes);
      }
      round_words(half[0], half[1], result + done, m);
    }
  }
  if (n % L::width) {
    T d = slope_of_score<T, Mode>(g, k, lse, widen<T>(x[n - 1]), widen<T>(t[n - 1]), weight_at<Mode, F>(w, n - 1),
                                  classes);
    out[n - 1] = Narrow<S>::from(d);
  }
}

// ---- rows whose classes lie side by side, one after the other

// Classes at once. The last ones of a row may reach into the next rows, which are written after it.
constexpr int64_t kAtOnce = 8;

// What is known of n rows, beside the class tensor's entries w, of which there are kAtOnce more than classes.
template <class T>
struct KnownRows {
  const T *a, *rest, *high, *low, *w;
};
// The gradients in the scores x, but for what the target class has apart; t as in grad_classes. x is not out.
template <class T, int Mode, class F>
LOSSREG_CLONES void grad_rows(const F& f, KnownRows<T> known, T* out, const T* x, const T* t, int64_t classes,
                              int64_t n) {
  const F g = f;
  const int64_t reach = (classes + kAtOnce - 1) / kAtOnce * kAtOnce;
  const T* w = known.w;
  for (int64_t i = 0; i < n; i++, x += classes, t += classes, out += classes) {
    const RowCoefficients<T> of_row{known.a[i], T(0), F::uses_shares(Mode) ? known.rest[i] : T(0)};
    const LogSum<T> lse{known.high[i], known.low[i]};
    if (i * classes + reach <= n * classes) {
      for (int64_t c = 0; c < classes; c += kAtOnce)
#pragma omp simd
        for (int64_t k = c; k < c + kAtOnce; k++)
          out[k] = slope_of_score<T, Mode>(g, of_row, lse, x[k], t[k], weight_at<Mode, F>(w, k), classes);
    } else {
      for (int64_t c = 0; c < classes; c++)
        out[c] = slope_of_score<T, Mode>(g, of_row, lse, x[c], t[c], weight_at<Mode, F>(w, c), classes);
    }
  }
}
// How much of -log p_c the spread of each row takes of all classes.
template <class T, int Mode, class F>
LOSSREG_CLONES void mass_of_rows(const F& f, T* mass, const T* t, const T* w, int64_t classes, int64_t n) {
  const F g = f;
  for (int64_t i = 0; i < n; i++, t += classes) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < classes; c++) sum += g.template share<Mode>(w[c], t[c], classes);
    mass[i] = sum;
  }
}

}  // namespace lossreg::cpu
