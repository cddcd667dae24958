#pragma once
// Log-probabilities of rows of scores, a chunk at a time: z = softcap(scores) / temperature and its softmax p.
#include "../../formulas/shared/softcap.h"
#include "../../skeletons/groupwise/kernel.h"
#include "pass.h"

namespace lossreg::linear {

// Of a row of scores, its log-sum-exp, and what log-probability, entropy and their gradients take of the whole row.
// With u_c = z_c - max: the log-sum-exp is max + low, low = log sum_c e^(u_c), and the entropy low - sum_c p_c u_c,
// where nothing large cancels.
struct RowStatistics {
  static constexpr auto name = "linear_log_prob";
  static constexpr auto args = "Tensor scores";
  static constexpr int inputs = 1, members = 1, gradients = 1, least_classes = 1;
  static constexpr Along along = Along::classes;
  Parameter scale;  // 1 / temperature
  Softcap softcap;

  enum { kPlain, kCapped };
  static constexpr int modes = 2;
  int mode() const { return softcap.caps() ? kCapped : kPlain; }
  template <int Mode, class T>
  HD T logit(T x) const {
    if constexpr (Mode == kCapped) return softcap.value(x) * T(scale);
    else return x * T(scale);
  }
  template <int Mode, class T>
  HD T logit_slope([[maybe_unused]] T x) const {
    if constexpr (Mode == kCapped) return softcap.slope(x) * T(scale);
    else return T(scale);
  }

  template <class T>
  HD T logit(T x) const {
    return softcap.caps() ? logit<kCapped>(x) : logit<kPlain>(x);
  }
  template <class T>
  HD T logit_slope(T x) const {
    return softcap.caps() ? logit_slope<kCapped>(x) : logit_slope<kPlain>(x);
  }

  // e^u and e^u u; coefficients: max, low, sum_c p_c u_c, and one more for the gradient
  static constexpr int sums = 2, coefficients = 4;
  static constexpr int maxima(int) { return 1; }
  template <int Mode, class T>
  HD Values<T, 1> candidates(T x) const {
    return {logit<Mode>(x)};
  }
  template <int Mode, class T>
  HD Values<T, 2> terms(const T* max, T x) const {
    // a class of probability 0 adds nothing, though its score may be -inf
    T u = logit<Mode>(x) - max[0], e = exp_term(u);
    return {e, e == T(0) ? T(0) : e * u};
  }
  // With a maximum that grows, u falls by the same for all classes.
  template <class T>
  HD void carry(const T* from, const T* to, T* sum) const {
    T du = from[0] - to[0], e = exp_term(du), shifted = sum[0] == T(0) ? sum[1] : sum[1] + sum[0] * du;
    sum[0] *= e;
    sum[1] = e == T(0) && shifted == shifted ? T(0) : e * shifted;
  }
  template <int Mode, class T>
  HD T value(const Group<T>& g) const {
    return g.max[0] + log(g.sum[0]);
  }
  template <int Mode, class T>
  HD Coefficients<T, 4> coefficients_of(const Group<T>& g) const {
    return {{g.max[0], log(g.sum[0]), g.sum[1] / g.sum[0], T(0)}, g.members};
  }
  // What every class takes of the gradient, the target too: p (c_2 - c_3 u), see RowGradients.
  template <int Mode, class T>
  HD Gradients<T, 1> grad(const Coefficients<T, 4>& c, T x) const {
    T u = logit<Mode>(x) - c.of[0], p = exp_term(u - c.of[1]), d = p * (c.of[2] - c.of[3] * u);
    return {(p == T(0) && c.of[2] == c.of[2] ? T(0) : d) * logit_slope<Mode>(x)};
  }
};

// The rows of a chunk, counted with their places, and the scores of their targets.
struct TargetScores {
  Operand scores;
  int64_t row, places,
      classes;     // how far a row lies from the next; columns are the places of one class, then of the next
  Operand target;  // of the rows of all chunks, of which the chunk's begin at `first`
  int64_t first, ignore_index;

  HD int64_t index(int64_t i) const { return get<int64_t>(target, (first + i) * target.stride[0]); }
  HD bool counts(int64_t y) const { return y != ignore_index; }
  HD bool is_class(int64_t y) const { return y >= 0 && y < classes; }
  HD int64_t place(int64_t i, int64_t y) const { return i / places * row + y * places + i % places; }
};

// Three numbers of every row, one kind after the other: max, low and sum_c p_c u_c of RowStatistics.
template <class T>
struct RowState {
  T* data;
  int64_t rows;
  HD T& max(int64_t i) const { return data[i]; }
  HD T& low(int64_t i) const { return data[rows + i]; }
  HD T& mean(int64_t i) const { return data[2 * rows + i]; }
};

// log p of the target, entropy and log-sum-exp of each row of a chunk, and what the backward pass is to find.
template <class T>
struct WriteRows {
  RowStatistics f;
  TargetScores target;
  RowState<T> found, kept;  // of the chunk; of all rows, if they are kept
  Operand log_prob, entropy, lse;

  HD void operator()(int64_t i) const {
    const T max = found.max(i), low = found.low(i), mean = found.mean(i);
    const int64_t y = target.index(i), at = target.first + i;
    T log_p = target.counts(y) ? T(NAN) : T(0);
    if (target.counts(y) && target.is_class(y))
      log_p = (f.logit(get<T>(target.scores, target.place(i, y))) - max) - low;
    put(log_prob, at, log_p);
    put(entropy, at, low - mean);
    put(lse, at, max + low);
    if (!kept.data) return;
    kept.max(at) = max, kept.low(at) = low, kept.mean(at) = mean;
  }
};

// From the gradients g, h and l of a row in its log p_y, entropy and log-sum-exp the coefficients of the one in z_c,
//   g ([c = y] - p_c) - h p_c (u_c - m) + l p_c = p_c ((l - g + h m) - h u_c) + g [c = y],   m = sum_c p_c u_c;
// and that of the target's class whole: 1 - p_y, where p_y is nearly 1, is no difference of floats.
template <class T>
struct RowGradients {
  RowStatistics f;
  TargetScores target;
  RowState<T> kept;
  Operand of_log_prob, of_entropy, of_lse;  // without data: 0
  T *coefficients, *hit;                    // those of the chunk
  int64_t rows;

  HD static T incoming(const Operand& o, int64_t at) { return o.data ? get<T>(o, at * o.stride[0]) : T(0); }
  HD void operator()(int64_t i) const {
    const int64_t y = target.index(i), at = target.first + i;
    const bool counts = target.counts(y) && of_log_prob.data, known = target.is_class(y);
    const T max = kept.max(at), low = kept.low(at), mean = kept.mean(at);
    const T h = incoming(of_entropy, at), l = incoming(of_lse, at);
    const T g = !counts ? T(0) : known ? incoming(of_log_prob, at) : T(NAN);
    coefficients[i] = max;
    coefficients[rows + i] = low;
    coefficients[2 * rows + i] = (l - g) + h * mean;
    coefficients[3 * rows + i] = h;
    if (!has_hit(i)) return;
    const T x = get<T>(target.scores, target.place(i, y)), u = f.logit(x) - max, p = exp_term(u - low);
    const T rest = p == T(0) ? T(0) : p * ((l + h * mean) - h * u);
    hit[i] = (rest + g * one_minus_exp(at_least(low - u, T(0)))) * f.logit_slope(x);
  }
  HD bool has_hit(int64_t i) const {
    const int64_t y = target.index(i);
    return of_log_prob.data && target.counts(y) && target.is_class(y);
  }
};
// Puts the gradients of the target classes over those that every class has.
template <class T>
struct WriteHits {
  RowGradients<T> of;
  Operand slopes;
  HD void operator()(int64_t i) const {
    if (of.has_hit(i)) put(slopes, of.target.place(i, of.target.index(i)), of.hit[i]);
  }
};

}  // namespace lossreg::linear
