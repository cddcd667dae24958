#pragma once
// Regression losses that outliers pull at less, or on one side more.
#include "../skeletons/formula.h"

namespace lossreg {

// Charbonnier et al., Two deterministic half-quadratic regularization algorithms for computed imaging, 1994:
// sqrt(r^2 + eps^2), r = x - t.
struct CharbonnierLoss {
  static constexpr auto name = "charbonnier_loss";
  static constexpr auto args = "Tensor input, Tensor target, float eps=0.001, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr bool says_broadcast = true;
  Parameter eps;

  static CharbonnierLoss make(double eps, Reduction) {
    expect(eps > 0 && eps < INFINITY, name, "finite eps > 0", eps);
    return {eps};
  }
  // The longer of the two lengths times a root between 1 and sqrt(2): nothing overflows or underflows. Both lengths are
  // 0 where no T is as small as eps.
  template <class T>
  HD T value(T x, T t) const {
    T r = abs(x - t), e = T(eps);
    bool far = r > e;
    T longer = far ? r : e, ratio = (far ? e : r) / or_1(longer);
    return longer * sqrt(T(1) + ratio * ratio);
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T g = (x - t) / or_1(value(x, t));
    return {g, -g};
  }
  template <class T>
  HD static T or_1(T x) {
    return x == T(0) ? T(1) : x;
  }
};

// log cosh(d), d = x - t. With s = e^-|d| that is |d| - log 2 + log(1 + s^2), and near 0, where those cancel,
// log(1 + (1 - s)^2 / (2 s)).
struct LogCoshLoss {
  static constexpr auto name = "log_cosh_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr bool says_broadcast = true;

  static LogCoshLoss make(Reduction) { return {}; }
  template <class T>
  HD T value(T x, T t) const {
    T a = abs(x - t), w = one_minus_exp(a), s = T(1) - w;
    bool near = a < T(1);
    // s is 0 where a is large
    T ratio = w * w / (T(2) * at_least(s, T(0.25)));
    return (near ? T(0) : a - T(0.69314718055994530942)) + log1p_unit(near ? ratio : s * s);
  }
  // tanh d
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T d = x - t, w = one_minus_exp(abs(d)), s = T(1) - w;
    T size = w * (T(1) + s) / (T(1) + s * s), g = d < T(0) ? -size : size;
    return {g, -g};
  }
};

// Koenker and Bassett, Regression quantiles, 1978, or pinball loss: max(q d, (q - 1) d), d = t - x. At the tie, as the
// maximum has it, half of each slope.
struct QuantileLoss {
  static constexpr auto name = "quantile_loss";
  static constexpr auto args = "Tensor input, Tensor target, float quantile=0.5, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr bool says_broadcast = true;
  Parameter above, below, tie;  // slopes where the target is above the input, below it, and equal

  static QuantileLoss make(double quantile, Reduction) {
    expect(quantile > 0 && quantile < 1, name, "quantile between 0 and 1", quantile);
    return {quantile, quantile - 1, quantile - 0.5};
  }
  template <class T>
  HD T value(T x, T t) const {
    T d = t - x;
    return d * (d > T(0) ? T(above) : T(below));
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T d = t - x;
    T equal = d == T(0) ? T(tie) : d;  // a NaN goes on
    T g = d > T(0) ? T(above) : d < T(0) ? T(below) : equal;
    return {-g, g};
  }
};

// Feng et al., Wing loss for robust facial landmark localisation, arXiv 1711.06753: w log(1 + r / c) of r = |x - t|
// below the width w, and from there on r and a constant. c is the curvature.
struct WingLoss {
  static constexpr auto name = "wing_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float width=10.0, float curvature=2.0, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr bool says_broadcast = true;
  Parameter width, curvature, apart;  // apart: what r is more than the loss beyond the width

  static WingLoss make(double width, double curvature, Reduction) {
    expect(width > 0 && width < INFINITY, name, "finite width > 0", width);
    expect(curvature > 0 && curvature < INFINITY, name, "finite curvature > 0", curvature);
    return {width, curvature, width - width * ::log1p(width / curvature)};
  }
  template <class T>
  HD T value(T x, T t) const {
    T r = abs(x - t);
    return r < T(width) ? T(width) * log1p(r / T(curvature)) : r - T(apart);
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T d = x - t, r = abs(d), size = r < T(width) ? T(width) / (T(curvature) + r) : T(1);
    T g = sign(d) * size;
    return {g, -g};
  }
};

using Ops = PointwiseOps<CharbonnierLoss, LogCoshLoss, QuantileLoss, WingLoss>;

}  // namespace lossreg
