#pragma once
#include <algorithm>
#include <array>

#include "../skeletons/formula.h"

namespace lossreg {

// Negative log likelihood of a Poisson count: e^x - t x for x = log rate, x - t log(x + eps) for x = rate.
// `full` adds Stirling's approximation of log t! for t > 1.
struct PoissonNLLLoss {
  static constexpr auto name = "poisson_nll_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, bool log_input=True, bool full=False, float eps=1e-08, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  bool log_input, full;
  Parameter eps;

  static PoissonNLLLoss make(bool log_input, bool full, double eps, Reduction) {
    expect(eps >= 0, name, "eps >= 0", eps);
    return {log_input, full, eps};
  }
  static constexpr int modes = 4;
  int mode() const { return int(log_input) + 2 * int(full); }

  template <int Mode, class T>
  HD T value(T x, T t) const {
    constexpr bool kLogInput = Mode & 1, kFull = Mode & 2;
    T rate, log_rate;
    if constexpr (kLogInput) rate = exp(x), log_rate = x;
    else rate = x, log_rate = log(x + T(eps));
    T loss = rate - t * log_rate;
    if constexpr (kFull) {
      // t log t beside t log(rate), which it cancels where the rate is right
      T safe = t > T(1) ? t : T(1), log_t = log(safe);
      T full = (rate - t) + t * (log_t - log_rate) + T(0.5) * (T(1.8378770664093453) + log_t);  // log(2 pi t)
      loss = t > T(1) ? full : loss;
    }
    return loss;
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    constexpr bool kLogInput = Mode & 1, kFull = Mode & 2;
    T dx, dt;
    if constexpr (kLogInput) {
      dx = exp(x) - t;
      dt = -x;
    } else {
      // at x + eps = 0 the derivative is infinite, or 0/0: 0 by the catalogue
      T rate = x + T(eps);
      dx = rate == T(0) ? T(0) : T(1) - t / rate;
      dt = rate == T(0) ? T(0) : -log(rate);
    }
    if constexpr (kFull) {
      T safe = t > T(1) ? t : T(1);
      dt = dt + (t > T(1) ? log(safe) + T(0.5) / safe : T(0));
    }
    return {dx, dt};
  }
};

// Negative log likelihood of a normal distribution of variance v. Below eps the variance counts as eps, and its
// gradient is the one there, as torch has it (the clamp is not differentiated). A negative variance gives NaN at its
// element.
struct GaussianNLLLoss {
  static constexpr auto name = "gaussian_nll_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor var, bool full=False, float eps=1e-06, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 3;
  static constexpr Shapes shapes = Shapes::broadcast;
  bool full;
  Parameter eps;

  static GaussianNLLLoss make(bool full, double eps, Reduction) {
    expect(eps >= 0, name, "eps >= 0", eps);
    return {full, eps};
  }
  // A variance for each element, or one for each row, with a last dimension of 1 or without it. As in torch, it may be
  // another dimension that is 1.
  static void align(std::array<std::vector<int64_t>, inputs>& shapes) {
    const std::vector<int64_t>& input = shapes[0];
    std::vector<int64_t>& var = shapes[2];
    if (var.size() + 1 == input.size() && std::equal(var.begin(), var.end(), input.begin())) var.push_back(1);
    int different = 0;
    bool fits = var.size() == input.size();
    for (size_t d = 0; fits && d < input.size(); d++)
      if (var[d] != input[d]) different++, fits = var[d] == 1 && different == 1;
    if (!fits)
      fail(name, "var of the shape of input, or with one dimension of 1 or the last one missing, got ",
           shape_text(input), " and ", shape_text(var));
  }
  template <class T>
  HD T variance(T v) const {
    T clamped = at_least(v, T(eps));
    return v < T(0) ? T(NAN) : clamped;
  }
  template <class T>
  HD T value(T x, T t, T var) const {
    T v = variance(var), r = x - t;
    T constant = full ? T(0.9189385332046727) : T(0);  // log(2 pi) / 2
    return T(0.5) * log(v) + (T(0.5) * r) * (r / v) + constant;
  }
  template <class T>
  HD Gradients<T, 3> grad(T x, T t, T var) const {
    T v = variance(var), z = (x - t) / v;
    return {z, -z, T(0.5) / v - T(0.5) * z * z};
  }
};

// Kullback-Leibler divergence of input = log q from target = p, or log p with log_target: p (log p - log q), 0 at p =
// 0.
struct KLDiv {
  static constexpr auto name = "kl_div";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\", bool log_target=False";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr bool batchmean = true;
  bool log_target;

  static KLDiv make(Reduction, bool log_target) { return {log_target}; }
  static constexpr int modes = 2;
  int mode() const { return int(log_target); }

  template <int Mode, class T>
  HD T value(T x, T t) const {
    if constexpr (Mode == 1) return exp(t) * (t - x);
    // two products, as torch: at p = 0 only the first is left out, so that log q = -inf shows
    T entropy = t == T(0) ? T(0) : t * log(t);
    return entropy - t * x;
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    if constexpr (Mode == 1) {
      T p = exp(t);
      return {-p, p * (t - x + T(1))};
    }
    // the slope in p at 0 is minus infinity: 0 by the catalogue
    return {-t, t == T(0) ? T(0) : log(t) + T(1) - x};
  }
};

using Ops = PointwiseOps<PoissonNLLLoss, GaussianNLLLoss, KLDiv>;

}  // namespace lossreg
