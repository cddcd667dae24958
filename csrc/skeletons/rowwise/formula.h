#pragma once
// The contract of a row formula, and the mathematics of a row, which every backend calls: functions of scalars, so that
// a backend only reads, sums and writes. tests/cpp/rows_test.cpp compares their slopes with dual numbers.
//
// A row has a score x_c for each class and a target: a class y, or a probability t_c for each class. Its logits are
//   z_c = logit(x_c), with a margin target_logit(x_y) for the target class, with a bias logit(x_c) + bias_c;
// with softmax log p_c = logit(x_c) - log sum_c e^(z_c), without log p_c = x_c.
#include "../../base/log_sum_exp.h"
#include "../formula.h"

namespace lossreg {

// What the value of one row is made of.
template <class T>
struct Row {
  T nll;     // -log p_y of the target class; 0 for a target of class probabilities
  T spread;  // sum_c u_c (-log p_c), u = the formula's share(); only value() may read it
  T mass;    // sum_c u_c
  T weight;  // w_y; 1 without class weights
  int64_t classes;
  T lse = T(0);  // log sum_c e^(z_c), of a formula that uses it
};
// d value / d nll, d value / d spread and d value / d lse: all that the gradient in the logits needs, since
// d nll / d z_c = p_c - [c = y], d spread / d z_c = mass p_c - u_c and d lse / d z_c = p_c.
template <class T>
struct Slopes {
  T nll, spread, lse = T(0);
};

// What a row formula is where it says nothing else: -log p_y over the softmax of the scores, ignored positions apart.
struct RowFormula {
  static constexpr bool softmax = true;   // or are the scores log-probabilities themselves?
  static constexpr int state_values = 2;  // what is kept for each row: the two parts of its log-sum-exp
  int64_t ignore_index;

  static constexpr int modes = 1;
  int mode(bool /*probabilities*/) const { return 0; }
  template <int Mode, class T>
  HD T value(const Row<T>& row) const {
    return row.nll;
  }
  template <int Mode, class T>
  HD Slopes<T> slopes(const Row<T>&) const {
    return {T(1), T(0)};
  }
  static constexpr bool slopes_of_nll = false;  // do they depend on the row's nll?
  // Does value() use the row's log-sum-exp for itself? Such a formula has adds_lse(), whether it does so in this call,
  // and `const double* mean_weight`, where it finds the mean weight of the rows: a mean by weight divides all that
  // value() gives by the sum of the weights, and what is multiplied with their mean, by the number of the rows then.
  // Null: 1.
  static constexpr bool uses_lse = false;
  // What the row adds to the mean's denominator.
  template <int Mode, class T>
  HD T normaliser(const Row<T>&) const {
    return T(1);
  }

  // u_c of the spread, where a mode has one.
  static constexpr bool uses_shares(int /*mode*/) { return false; }
  template <int Mode, class T>
  HD T share(T /*w*/, T /*t*/, int64_t /*classes*/) const {
    return T(0);
  }
  // What it takes of the number of classes alone: share(w, t, even<T>(classes)) is the same.
  template <class T>
  HD T even(int64_t /*classes*/) const {
    return T(0);
  }
  // The mode in which the target holds class probabilities, -1: none. A formula that has one has shares there, and
  //   Gradients<T, 2> share_grad(T nll, T w, T t, int64_t classes)
  // the slopes of u_c nll_c in t_c and in w_c, nll_c = -log p_c.
  static constexpr int probability_mode = -1;

  // With a margin the target class has a logit of its own. logit() is linear then, with logit_slope() for its
  // derivative; target_slope() is that of target_logit(). There are no shares beside a margin. `advice` says what
  // scores the margin is made for, and is_suspect(score) finds others: those of target classes, on the CPU.
  static constexpr bool has_margin = false;
  template <class T>
  HD T logit(T x) const {
    return x;
  }
  template <class T>
  HD T logit_slope() const {
    return T(1);
  }
  template <class T>
  HD T target_logit(T x) const {
    return x;
  }
  template <class T>
  HD T target_slope(T) const {
    return T(1);
  }

  // Is logit() no line? Then logit_slope(x) is its derivative, target_logit() the same function as logit(), and there
  // is neither a margin nor a bias.
  static constexpr bool curved = false;
  template <class T>
  HD T logit_slope(T) const {
    return T(1);
  }

  // With a bias the class tensor belongs to the softmax: bias(w), NaN outside of what `domain` says, is added to the
  // class's exponent in the log-sum-exp, and not to the score that is taken off it.
  static constexpr bool has_bias = false;

  // A formula with an option that costs time though it is off may be derived from the one without it, `Plain`, which
  // may be such a formula in turn: is_plain() says whether that is to be computed instead.
};

// Calls use(formula) with what a call of f computes.
template <class F, class Use>
void with_formula(const F& f, Use use) {
  if constexpr (has<declared::plain, F>) {
    if (f.is_plain()) return with_formula(static_cast<const typename F::Plain&>(f), use);
  }
  use(f);
}

template <class F>
constexpr bool takes_probabilities = F::probability_mode >= 0;

// Of one row: how much of -log p_c the spread takes of all classes, and sum_c u_c (z_c - max), where nothing large
// cancels.
template <class T>
struct Shares {
  T mass, dot;

  HD static Shares none() { return {T(0), T(0)}; }
  // below: z_c - max. A class without a share adds nothing, whatever its score.
  HD void add(T u, T below) {
    mass += u;
    dot += u == T(0) ? T(0) : u * below;
  }
  HD void move(T from, T to) { dot += mass == T(0) ? T(0) : mass * (from - to); }
};

// Its log-sum-exp is high + low: the greatest logit, and the logarithm of the sum of e^(z_c - high).
template <class T>
struct LogSum {
  T high, low;
};

// What a row is measured by at its target: `valid` unless it is ignored, the class's score and weight where there is a
// class.
template <class T>
struct Target {
  bool valid, is_class;
  T score, logit, weight;
};

// -log p_c of a class: its logit is the one that the softmax takes off the log-sum-exp, without the bias.
template <class F, class T>
HD T nll_of(LogSum<T> lse, T logit) {
  return F::softmax ? lse.low + (lse.high - logit) : -logit;
}

template <int Mode, class F, class T>
HD Row<T> row_of(LogSum<T> lse, Shares<T> shares, Target<T> y, int64_t classes) {
  const T nll = nll_of<F>(lse, y.logit);
  Row<T> row{y.is_class ? nll : T(0), T(0), T(0), y.weight, classes};
  if constexpr (F::uses_shares(Mode)) {
    row.mass = shares.mass;
    row.spread = shares.mass * lse.low - shares.dot;
  }
  if constexpr (F::uses_lse) row.lse = lse.high + lse.low;
  return row;
}

// The row's loss, and what it adds to the mean's denominator; 0 where it is ignored.
template <class T>
struct RowLoss {
  T value, normaliser;
};
template <int Mode, class F, class T>
HD RowLoss<T> row_loss(const F& f, LogSum<T> lse, Shares<T> shares, Target<T> y, int64_t classes) {
  const Row<T> row = row_of<Mode, F>(lse, shares, y, classes);
  const T value = f.template value<Mode>(row), normaliser = f.template normaliser<Mode>(row);
  return {y.valid ? value : T(0), y.valid ? normaliser : T(0)};
}

// What the gradient of a row in its logits is made of: a p_c - rest u_c at class c, at the target class less hit; with
// a margin hit is the target's whole gradient in its score, with its sign.
template <class T>
struct RowCoefficients {
  T a, hit, rest;
};
// grad: the gradient in the row's loss. Of the shares, their mass is all that it takes.
template <int Mode, class F, class T>
HD RowCoefficients<T> row_coefficients(const F& f, LogSum<T> lse, Shares<T> shares, Target<T> y, int64_t classes,
                                       T grad) {
  const Row<T> row = row_of<Mode, F>(lse, shares, y, classes);
  const Slopes<T> s = f.template slopes<Mode>(row);
  const T nll = grad * s.nll, spread = grad * s.spread;
  T a, hit = nll;
  if constexpr (F::has_margin) {
    static_assert(!F::uses_shares(Mode), "no shares beside a margin");
    a = nll * f.template logit_slope<T>();
    // p_y - 1, without cancellation
    hit = -nll * f.target_slope(y.score) * one_minus_exp(row.nll);
  } else {
    a = grad * (s.nll + s.spread * row.mass);
    if constexpr (F::uses_lse) a += grad == T(0) ? T(0) : grad * s.lse;  // a row of NaN that nobody asks for
  }
  return {y.valid ? a : T(0), y.valid ? hit : T(0), y.valid ? spread : T(0)};
}

// The gradient in the score x, given that in its logit, where that is no line. 0 stays 0, whatever x is.
template <class F, class T>
HD T score_slope_of(const F& f, T of_logit, T x) {
  if constexpr (F::curved) {
    const T d = of_logit * f.logit_slope(x);
    return of_logit == T(0) ? T(0) : d;
  } else {
    return of_logit;
  }
}
// The gradient in the score x of a class that is not the target, u its share. A row whose coefficients are 0 gets 0,
// whatever it holds.
template <int Mode, class F, class T>
HD T score_slope(const F& f, RowCoefficients<T> k, LogSum<T> lse, T x, T bias, T u) {
  T d = T(0);
  if constexpr (F::softmax) {
    T e = (f.logit(x) - lse.high) - lse.low;
    if constexpr (F::has_bias) e += bias;
    const T ap = k.a * exp_term(e);
    d = k.a == T(0) ? T(0) : ap;
  }
  if constexpr (F::uses_shares(Mode)) {
    const T ru = k.rest * u;
    d -= k.rest == T(0) ? T(0) : ru;
  }
  return score_slope_of(f, d, x);
}
// That of the target class, given what score_slope says of it.
template <class F, class T>
HD T target_score_slope(const F& f, T slope, T hit, T x) {
  return F::has_margin ? hit : slope - score_slope_of(f, hit, x);
}

}  // namespace lossreg
