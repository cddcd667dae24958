#pragma once
#include "../base/log_sum_exp.h"
#include "../skeletons/groupwise/formula.h"

namespace lossreg {

// What compares the softmax q = softmax(x/T) of a student with that of a teacher, p = softmax(t/T), const.
struct TwoSoftmaxes {
  static constexpr int inputs = 2, members = 2, gradients = 1, least_classes = 1;
  static constexpr Along along = Along::classes;
  double temperature;
  Parameter inverse = 1 / temperature;

  static TwoSoftmaxes make(const char* op, double temperature) {
    expect(temperature > 0 && temperature < INFINITY, op, "a finite temperature > 0", temperature);
    return {temperature};
  }

  static constexpr int maxima(int) { return 2; }
  template <int Mode, class T>
  HD Values<T, 2> candidates(T x, T t) const {
    return {x, t};
  }
};

// T^2 sum_c p_c (log p_c - log q_c); arXiv 1503.02531. With u = (x - max x)/T, v = (t - max t)/T it is
// T^2 (sum_c e^v (v - u) / sum_c e^v + log sum_c e^u - log sum_c e^v), where nothing large cancels.
struct DistillationLoss : TwoSoftmaxes {
  static constexpr auto name = "distillation_loss";
  static constexpr auto args = "Tensor input, Tensor target, float temperature=2.0, str reduction=\"mean\"";

  static DistillationLoss make(double temperature, Reduction) { return {TwoSoftmaxes::make(name, temperature)}; }

  static constexpr int sums = 3, coefficients = 4;
  template <int Mode, class T>
  HD Values<T, 3> terms(const T* max, T x, T t) const {
    T u = (x - max[0]) * T(inverse), v = (t - max[1]) * T(inverse), p = exp_term(v);
    return {exp_term(u), p, p == T(0) ? T(0) : p * (v - u)};
  }
  // With maxima that grow, u and v fall by the same for all classes.
  template <class T>
  HD void carry(const T* from, const T* to, T* sum) const {
    T du = (from[0] - to[0]) * T(inverse), dv = (from[1] - to[1]) * T(inverse), p = exp_term(dv);
    T shifted = sum[1] == T(0) ? sum[2] : sum[2] + sum[1] * (dv - du);
    sum[0] *= exp_term(du);
    sum[1] *= p;
    // as in terms; but what is not a number stays so
    sum[2] = p == T(0) && shifted == shifted ? T(0) : p * shifted;
  }
  template <class T>
  HD T value(const Group<T>& g) const {
    return T(temperature * temperature) * (g.sum[2] / g.sum[1] + log(g.sum[0]) - log(g.sum[1]));
  }
  template <int Mode, class T>
  HD Coefficients<T, 4> coefficients_of(const Group<T>& g) const {
    return {{g.max[0], T(temperature) / g.sum[0], g.max[1], T(temperature) / g.sum[1]}, g.members};
  }
  // T (q - p)
  template <int Mode, class T>
  HD Gradients<T, 1> grad(const Coefficients<T, 4>& c, T x, T t) const {
    T u = (x - c.of[0]) * T(inverse), v = (t - c.of[2]) * T(inverse);
    return {c.of[1] * exp_term(u) - c.of[3] * exp_term(v)};
  }
};

// What is summed of probabilities, and not of exponentials: in a second pass over the classes. A loss sum_c l(q_c)
// whose slopes are s_c = l'(q_c) has the gradient q_c (s_c - sum_k q_k s_k) / T, so that sum_k q_k s_k is one of the
// sums.
struct OfProbabilities : TwoSoftmaxes {
  static constexpr int sums = 2, later = 2, coefficients = 5;
  template <int Mode, class T>
  HD Values<T, 2> terms(const T* max, T x, T t) const {
    return {exp_term((x - max[0]) * T(inverse)), exp_term((t - max[1]) * T(inverse))};
  }
  template <class T>
  HD void carry(const T* from, const T* to, T* sum) const {
    for (int k = 0; k < 2; k++) sum[k] *= exp_term((from[k] - to[k]) * T(inverse));
  }
  // The parts of both log-sum-exps, and the second of the later sums.
  template <int Mode, class T>
  HD Coefficients<T, 5> coefficients_of(const Group<T>& g) const {
    return {{g.max[0], log_of_sum(g.sum[0], g.max[0]), g.max[1], log_of_sum(g.sum[1], g.max[1]), g.sum[3]}, g.members};
  }
  template <class T>
  struct Pair {
    T log_q, log_p, q, p;
  };
  template <class T>
  HD Pair<T> pair(const Coefficients<T, 5>& c, T x, T t) const {
    T log_q = (x - c.of[0]) * T(inverse) - c.of[1], log_p = (t - c.of[2]) * T(inverse) - c.of[3];
    return {log_q, log_p, exp_term(log_q), exp_term(log_p)};
  }
};

// beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, the generalised Jensen-Shannon divergence of
// arXiv 2306.13649; KL(p || q) for beta = 0 and KL(q || p) for beta = 1, as there.
struct JSDLoss : OfProbabilities {
  static constexpr auto name = "jsd_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float beta=0.5, float temperature=1.0, str reduction=\"mean\"";
  Parameter beta, rest;

  static JSDLoss make(double beta, double temperature, Reduction) {
    expect(beta >= 0 && beta <= 1, name, "beta in [0, 1]", beta);
    return {{TwoSoftmaxes::make(name, temperature)}, beta, 1 - beta};
  }

  enum { kForward, kReverse, kMixed };
  static constexpr int modes = 3;
  int mode() const { return beta == 0 ? kForward : beta == 1 ? kReverse : kMixed; }

  // Of d = log p - log q: log r/m, r the larger of both, so that m/r is a sum of no large numbers.
  template <class T>
  HD T larger_over_mixture(T d) const {
    T own = d > T(0) ? T(beta) : T(rest);
    // at least: a beta too small for T
    return -log(at_least(own + (T(1) - own) * exp_term(-abs(d)), T(1.2e-38)));
  }
  // log p/m and log q/m
  template <int Mode, class T>
  HD T p_over(T d) const {
    if constexpr (Mode != kMixed) return d;
    return larger_over_mixture(d) + at_most(d, T(0));
  }
  template <int Mode, class T>
  HD T q_over(T d) const {
    if constexpr (Mode != kMixed) return -d;
    return larger_over_mixture(d) - at_least(d, T(0));
  }
  // The terms of both divergences. A class of probability 0 adds nothing, however unlikely it is.
  template <int Mode, class T>
  HD Values<T, 2> later_terms(const Coefficients<T, 5>& c, T x, T t) const {
    Pair<T> k = pair(c, x, t);
    T d = k.log_p - k.log_q, of_p = k.p * p_over<Mode>(d), of_q = k.q * q_over<Mode>(d);
    return {Mode == kReverse || k.p == T(0) ? T(0) : of_p, Mode == kForward || k.q == T(0) ? T(0) : of_q};
  }
  template <int Mode, class T>
  HD T value(const Group<T>& g) const {
    if constexpr (Mode == kMixed) return T(beta) * g.sum[2] + T(rest) * g.sum[3];
    return g.sum[2] + g.sum[3];
  }
  template <int Mode, class T>
  HD Gradients<T, 1> grad(const Coefficients<T, 5>& c, T x, T t) const {
    Pair<T> k = pair(c, x, t);
    if constexpr (Mode == kForward) return {T(inverse) * (k.q - k.p)};
    T weight = Mode == kMixed ? T(inverse) * T(rest) : T(inverse);
    T g = weight * (k.q * (q_over<Mode>(k.log_p - k.log_q) - c.of[4]));
    return {k.q == T(0) ? T(0) : g};
  }
};

// 1/2 sum_c |q_c - p_c|: the largest difference of the probabilities that the two give to any event.
struct TotalVariationLoss : OfProbabilities {
  static constexpr auto name = "total_variation_loss";
  static constexpr auto args = "Tensor input, Tensor target, float temperature=1.0, str reduction=\"mean\"";

  static TotalVariationLoss make(double temperature, Reduction) { return {{TwoSoftmaxes::make(name, temperature)}}; }

  template <int Mode, class T>
  HD Values<T, 2> later_terms(const Coefficients<T, 5>& c, T x, T t) const {
    Pair<T> k = pair(c, x, t);
    return {abs(k.q - k.p), k.q * sign(k.q - k.p)};
  }
  template <class T>
  HD T value(const Group<T>& g) const {
    return T(0.5) * g.sum[2];
  }
  // Where both are equal the slope is 0.
  template <int Mode, class T>
  HD Gradients<T, 1> grad(const Coefficients<T, 5>& c, T x, T t) const {
    Pair<T> k = pair(c, x, t);
    return {T(0.5) * T(inverse) * (k.q * (sign(k.q - k.p) - c.of[4]))};
  }
};

// CE + lambda/2 sum_{c != y} (q_c - 1/(C-1)) log q_c, q = softmax over the other classes; Kobayashi, BMVC 2019. With
// u = x - max of the others: CE = log(1 + e^(lse of the others - x_y)), which keeps its digits however far the target
// leads, and the sum is E_q[u] - mean u, since its log-sum-exp cancels.
struct LargeMarginSoftmaxLoss {
  static constexpr auto name = "large_margin_softmax_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float lam=0.3, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 2, members = 1, gradients = 1, least_classes = 2;
  static constexpr Along along = Along::classes;
  double lam;
  int64_t ignore_index;

  static LargeMarginSoftmaxLoss make(double lam, int64_t ignore_index, Reduction) {
    expect(lam >= 0 && lam < INFINITY, name, "a finite lam >= 0", lam);
    return {lam, ignore_index};
  }

  static constexpr int sums = 5, coefficients = 4;
  static constexpr int maxima(int) { return 1; }
  template <int Mode, class T>
  HD Values<T, 1> candidates(T x, bool hit) const {
    return {hit ? T(-INFINITY) : x};
  }
  // of the others e^u, e^u u, u and how many they are; of the target its score
  template <int Mode, class T>
  HD Values<T, 5> terms(const T* max, T x, bool hit) const {
    // far below the maximum e^u is 0 of whatever is finite, and e^u u as well
    T u = x - max[0], near = hit ? T(-1000) : at_least(u, T(-1000)), e = exp_term(near);
    return {e, e * near, hit ? T(0) : u, hit ? T(0) : T(1), hit ? x : T(0)};
  }
  // With a maximum that grows, u falls by the same for all others.
  template <class T>
  HD void carry(const T* from, const T* to, T* sum) const {
    T du = from[0] - to[0], p = exp_term(du);
    // where there were no others yet, the difference may be infinite
    T shifted = sum[3] == T(0) ? T(0) : sum[1] + sum[0] * at_least(du, T(-1000));
    sum[2] = sum[3] == T(0) ? T(0) : sum[2] + sum[3] * du;
    sum[0] *= p;
    sum[1] = p * shifted;
  }
  // log of the odds against the target
  template <class T>
  HD static T odds(const Group<T>& g) {
    return log(g.sum[0]) - (g.sum[4] - g.max[0]);
  }
  template <class T>
  HD T value(const Group<T>& g) const {
    T regulariser = g.sum[1] / g.sum[0] - g.sum[2] / g.sum[3];
    return softplus(odds(g)) + T(lam / 2) * regulariser;
  }
  template <int Mode, class T>
  HD Coefficients<T, 4> coefficients_of(const Group<T>& g) const {
    return {{g.max[0], T(1) / g.sum[0], g.sum[1] / g.sum[0], sigmoid(odds(g))}, g.members};
  }
  template <int Mode, class T>
  HD Gradients<T, 1> grad(const Coefficients<T, 4>& c, T x, bool hit) const {
    T u = x - c.of[0], e = exp_negative(u), q = e * c.of[1];
    T spread = e == T(0) ? T(0) : q * (c.of[3] + T(lam / 2) * (T(1) + u - c.of[2]));
    return {hit ? -c.of[3] : spread - T(lam / 2) / (c.members - T(1))};
  }
};

using Ops = GroupOps<DistillationLoss, JSDLoss, TotalVariationLoss, LargeMarginSoftmaxLoss>;

}  // namespace lossreg
