#pragma once
#include "../skeletons/groupwise/formula.h"

namespace lossreg {

// T^2 sum_c p_c (log p_c - log q_c), q = softmax(x/T) of the student, p = softmax(t/T) of the teacher, const;
// arXiv 1503.02531. With u = (x - max x)/T, v = (t - max t)/T it is
// T^2 (sum_c e^v (v - u) / sum_c e^v + log sum_c e^u - log sum_c e^v), where nothing large cancels.
struct DistillationLoss {
  static constexpr auto name = "distillation_loss";
  static constexpr auto args = "Tensor input, Tensor target, float temperature=2.0, str reduction=\"mean\"";
  static constexpr int inputs = 2, members = 2, gradients = 1, least_classes = 1;
  static constexpr Along along = Along::classes;
  double temperature;

  static DistillationLoss make(double temperature, Reduction) {
    expect(temperature > 0 && temperature < INFINITY, name, "a finite temperature > 0", temperature);
    return {temperature};
  }

  static constexpr int sums = 3, coefficients = 4;
  static constexpr int maxima(int) { return 2; }
  template <int Mode, class T>
  HD Values<T, 2> candidates(T x, T t) const {
    return {x, t};
  }
  template <int Mode, class T>
  HD Values<T, 3> terms(const T* max, T x, T t) const {
    T u = (x - max[0]) * T(1 / temperature), v = (t - max[1]) * T(1 / temperature), p = exp_term(v);
    return {exp_term(u), p, p == T(0) ? T(0) : p * (v - u)};
  }
  // With maxima that grow, u and v fall by the same for all classes.
  template <class T>
  HD void carry(const T* from, const T* to, T* sum) const {
    T du = (from[0] - to[0]) * T(1 / temperature), dv = (from[1] - to[1]) * T(1 / temperature), p = exp_term(dv);
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
    T u = (x - c.of[0]) * T(1 / temperature), v = (t - c.of[2]) * T(1 / temperature);
    return {c.of[1] * exp_term(u) - c.of[3] * exp_term(v)};
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

using Ops = GroupOps<DistillationLoss, LargeMarginSoftmaxLoss>;

}  // namespace lossreg
