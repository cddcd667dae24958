#pragma once
#include "shared/focal.h"

namespace lossreg {

// -w (t log x + (1-t) log(1-x)) of a probability x. Both logarithms stop at -100, as torch has it; so the gradient's
// denominator stops at 1e-12.
struct BinaryCrossEntropy {
  static constexpr auto name = "binary_cross_entropy";
  static constexpr auto args = "Tensor input, Tensor target, Tensor? weight=None, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  static constexpr unsigned typed_by = 0b001;

  static BinaryCrossEntropy make(Reduction) { return {}; }
  // Outside of it value and gradient are NaN, which the CPU, where an error costs no synchronisation, makes one.
  static constexpr const char* domains[] = {"input in [0, 1]", "target in [0, 1]"};
  template <class T>
  HD bool in_domain(T x) const {
    return x >= T(0) && x <= T(1);
  }
  template <class T>
  HD T value(T x, T t, T w) const {
    T log_p = at_least(log(x), T(-100)), log_q = at_least(log1m(x), T(-100));
    T loss = w * ((t - T(1)) * log_q - t * log_p);
    return in_domain(t) ? loss : T(NAN);
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t, T w) const {
    T log_p = at_least(log(x), T(-100)), log_q = at_least(log1m(x), T(-100));
    // one condition after the other: joined by && they keep the loop scalar
    T factor = in_domain(x) ? w : T(NAN);
    factor = in_domain(t) ? factor : T(NAN);
    return {factor * ((x - t) / at_least(x * (T(1) - x), T(1e-12))), factor * (log_q - log_p)};
  }
};

// The same of a logit x, with pos_weight v on the positive part: (1-t) x + (1 + (v-1) t) log(1 + e^-x).
struct BinaryCrossEntropyWithLogits {
  static constexpr auto name = "binary_cross_entropy_with_logits";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, Tensor? pos_weight=None, str reduction=\"mean\"";
  static constexpr int inputs = 4, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  static constexpr unsigned typed_by = 0b0010;  // torch writes into a tensor like 1 - t

  static BinaryCrossEntropyWithLogits make(Reduction) { return {}; }
  template <class T>
  HD T value(T x, T t, T w, T v) const {
    T positive = T(1) + (v - T(1)) * t;
    // (1-t) x + positive * relu(-x), by the sign of x so that nothing large cancels
    T linear = x < T(0) ? -(v * t) * x : (T(1) - t) * x;
    return w * (linear + positive * log1p_unit(exp_negative(-abs(x))));
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t, T w, T v) const {
    Logit<T> k(x);
    T dt = (k.negative ? -(v * x) : -x) + (v - T(1)) * k.log_term;
    // not p - t, which loses all digits of a confident right answer; so nothing cancels at t = 0 and 1
    return {w * ((T(1) - t) * k.p - v * t * k.q), w * dt};
  }
};

// Lin et al., Focal loss for dense object detection, arXiv 1708.02002, on logits.
// With m = 1 - p_t: alpha_t m^gamma ce. m is made of sigmoid(x) and sigmoid(-x) so that it keeps its digits near 0.
struct FocalLoss {
  static constexpr auto name = "focal_loss";
  static constexpr auto args = "Tensor input, Tensor target, float alpha=0.25, float gamma=2.0, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  Parameter alpha;
  Focus focus;

  static FocalLoss make(double alpha, double gamma, Reduction) {
    expect(alpha <= 1, name, "alpha <= 1 (below 0: no weighting)", alpha);
    return {alpha, Focus::make(name, "gamma", gamma)};
  }
  // gamma = 2 is the paper's choice.
  static constexpr int modes = 2;
  int mode() const { return focus.squares(); }

  template <class T>
  struct Terms {
    T miss, cross_entropy, alpha, alpha_slope;
  };
  template <class T>
  HD Terms<T> terms(const Logit<T>& k, T x, T t) const {
    T share = T(alpha), a = share < T(0) ? T(1) : T(1) - share, slope = share < T(0) ? T(0) : T(2) * share - T(1);
    return {k.p * (T(1) - t) + k.q * t, k.cross_entropy(x, t), a + slope * t, slope};
  }
  template <int Mode, class T>
  HD T value(T x, T t) const {
    Terms<T> k = terms(Logit<T>(x), x, t);
    return k.alpha * focus.template power<Mode>(k.miss) * k.cross_entropy;
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    Logit<T> logit(x);
    Terms<T> k = terms(logit, x, t);
    T power = focus.template power<Mode>(k.miss), slope = focus.template slope<Mode>(k.miss, power);
    T p = logit.p, q = logit.q, dm_dx = p * q * (T(1) - T(2) * t);
    // q - p, with its digits near x = 0
    T apart = one_minus_exp(abs(x)) * (logit.negative ? q : p), dm_dt = logit.negative ? apart : -apart;
    T dce_dx = (T(1) - t) * p - t * q;
    T dx = k.alpha * (slope * dm_dx * k.cross_entropy + power * dce_dx);
    T dt = k.alpha_slope * power * k.cross_entropy + k.alpha * (slope * dm_dt * k.cross_entropy - power * x);
    return {dx, dt};
  }
};

using Ops = PointwiseOps<BinaryCrossEntropy, BinaryCrossEntropyWithLogits, FocalLoss>;

}  // namespace lossreg
