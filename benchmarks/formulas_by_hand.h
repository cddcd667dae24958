#pragma once
// The formulas of formulas.py as one writes them by hand: what the kernels that are made of the Python functions are
// measured against.
#include <opreg/base/special.h>
#include <opreg/skeletons/rowwise/formula.h>

namespace lossreg {

struct CharbonnierLoss {
  static constexpr auto name = "charbonnier_loss";
  static constexpr auto args = "Tensor input, Tensor target, float eps=1e-3, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  Parameter square;

  static CharbonnierLoss make(double eps, Reduction) { return {eps * eps}; }
  template <class T>
  HD T value(T x, T t) const {
    T d = x - t;
    return sqrt(d * d + T(square));
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T d = x - t, g = d / sqrt(d * d + T(square));
    return {g, -g};
  }
};

struct LogCoshLoss {
  static constexpr auto name = "log_cosh_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;

  static LogCoshLoss make(Reduction) { return {}; }
  template <class T>
  HD T value(T x, T t) const {
    return log_cosh(x - t);
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T g = tanh(x - t);
    return {g, -g};
  }
};

struct PinballLoss {
  static constexpr auto name = "pinball_loss";
  static constexpr auto args = "Tensor input, Tensor target, float tau=0.5, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  Parameter tau, rest, middle;

  static PinballLoss make(double tau, Reduction) { return {tau, tau - 1, tau - 0.5}; }
  template <class T>
  HD T value(T x, T t) const {
    T d = t - x;
    return d < T(0) ? T(rest) * d : T(tau) * d;
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T d = t - x, g = d < T(0) ? T(rest) : T(tau);
    g = d == T(0) ? T(middle) : g;
    return {-g, g};
  }
};

struct WingLoss {
  static constexpr auto name = "wing_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float width=5.0, float curvature=0.5, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  Parameter width, curvature, inverse, constant;

  static WingLoss make(double width, double curvature, Reduction) {
    return {width, curvature, 1 / curvature, width - width * ::log1p(width / curvature)};
  }
  template <class T>
  HD T value(T x, T t) const {
    T d = abs(x - t);
    return d < T(width) ? T(width) * log1p(d * T(inverse)) : d - T(constant);
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T d = abs(x - t), s = sign(x - t);
    T g = d < T(width) ? s * (T(width) / (T(curvature) + d)) : s;
    return {g, -g};
  }
};

struct TanhGelu {
  static constexpr auto name = "tanh_gelu";
  static constexpr auto args = "Tensor input";
  static constexpr int inputs = 1, gradients = 1;
  static constexpr Shapes shapes = Shapes::same;

  static TanhGelu make() { return {}; }
  template <class T>
  HD T value(T x) const {
    return x * sigmoid(T(1.5957691216057308) * (x + T(0.044715) * (x * x * x)));
  }
  template <class T>
  HD Gradients<T, 1> grad(T x) const {
    T s = x * x, z = x * (T(1.5957691216057308) + T(0.07135481282) * s);
    T e = exp_negative(-abs(z)), r = inverse_1p_unit(e), p = z < T(0) ? e * r : r;
    return {p + x * (e * r * r) * (T(1.5957691216057308) + T(0.21406443846) * s)};
  }
};

struct SoftplusBeta {
  static constexpr auto name = "softplus_beta";
  static constexpr auto args = "Tensor input, float beta=1.0";
  static constexpr int inputs = 1, gradients = 1;
  static constexpr Shapes shapes = Shapes::same;
  Parameter beta, inverse;

  static SoftplusBeta make(double beta) { return {beta, 1 / beta}; }
  template <class T>
  HD T value(T x) const {
    return softplus(T(beta) * x) * T(inverse);
  }
  template <class T>
  HD Gradients<T, 1> grad(T x) const {
    return {sigmoid(T(beta) * x)};
  }
};

struct AsymmetricFocalLoss {
  static constexpr auto name = "asymmetric_focal_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float gamma_pos=1.0, float gamma_neg=4.0, float clip=0.05, "
      "str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  Parameter gamma_pos, gamma_neg, clip;

  static AsymmetricFocalLoss make(double gamma_pos, double gamma_neg, double clip, Reduction) {
    return {gamma_pos, gamma_neg, clip};
  }
  static constexpr int modes = 2;
  int mode() const { return gamma_pos == 1.0 && gamma_neg == 4.0 ? 0 : 1; }
  template <int Mode, class T>
  HD T power(T x, T gamma) const {
    if constexpr (Mode == 0) return x * x * x * x;
    else return pow_unit(x, gamma);
  }
  template <int Mode, class T>
  HD T value(T x, T t) const {
    T e = exp_negative(-abs(x)), r = inverse_1p_unit(e), s = e * r;
    T p = x < T(0) ? s : r, rest = x < T(0) ? r : s;
    T q = at_most(rest + T(clip), T(1));
    T cross_entropy = relu(-x) + log1p_unit(e);
    T positive = (Mode == 0 ? rest : pow_unit(rest, T(gamma_pos))) * cross_entropy;
    T negative = power<Mode>(T(1) - q, T(gamma_neg)) * log(at_least(q, T(1e-8)));
    (void)p;
    return t * positive - (T(1) - t) * negative;
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T e = exp_negative(-abs(x)), r = inverse_1p_unit(e), s = e * r;
    T p = x < T(0) ? s : r, rest = x < T(0) ? r : s, slope = s * r;
    T q = at_most(rest + T(clip), T(1)), m = T(1) - q;
    T cross_entropy = relu(-x) + log1p_unit(e), log_q = log(at_least(q, T(1e-8)));
    T of_rest = Mode == 0 ? rest : pow_unit(rest, T(gamma_pos));
    T of_m = power<Mode>(m, T(gamma_neg)), steep;
    if constexpr (Mode == 0) steep = T(4) * m * m * m;
    else steep = m > T(0) ? T(gamma_neg) * of_m / m : T(0);
    T inside = rest + T(clip) > T(1) ? T(0) : slope;
    T dpositive = -of_rest * (T(gamma_pos) * p * cross_entropy + rest);
    T dnegative = inside * (steep * log_q - of_m / at_least(q, T(1e-8)));
    return {t * dpositive - (T(1) - t) * dnegative, of_rest * cross_entropy + of_m * log_q};
  }
};

struct WelschLoss {
  static constexpr auto name = "welsch_loss";
  static constexpr auto args = "Tensor input, Tensor target, float c=1.0, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  Parameter factor, inverse;

  static WelschLoss make(double c, Reduction) { return {c * c / 2, 1 / (c * c)}; }
  template <class T>
  HD T value(T x, T t) const {
    T d = x - t;
    return T(factor) * one_minus_exp(d * d * T(inverse));
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T d = x - t, g = d * exp_negative(-(d * d * T(inverse)));
    return {g, -g};
  }
};

struct GeneralizedCrossEntropy : RowFormula {
  static constexpr auto name = "generalized_cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, float q=0.7, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 1;
  Parameter q, inverse;

  static GeneralizedCrossEntropy make(double q, int64_t ignore_index, Reduction) { return {{ignore_index}, q, 1 / q}; }
  template <int Mode, class T>
  HD T value(const Row<T>& row) const {
    return row.weight * (one_minus_exp(T(q) * row.nll) * T(inverse));
  }
  static constexpr bool slopes_of_nll = true;
  template <int Mode, class T>
  HD Slopes<T> slopes(const Row<T>& row) const {
    return {row.weight * exp_negative(-T(q) * row.nll), T(0)};
  }
  template <int Mode, class T>
  HD T normaliser(const Row<T>& row) const {
    return row.weight;
  }
};

struct Poly1Loss : RowFormula {
  static constexpr auto name = "poly1_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, float eps=1.0, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 1;
  Parameter eps;

  static Poly1Loss make(double eps, int64_t ignore_index, Reduction) { return {{ignore_index}, eps}; }
  template <int Mode, class T>
  HD T value(const Row<T>& row) const {
    return row.weight * (row.nll + T(eps) * one_minus_exp(row.nll));
  }
  static constexpr bool slopes_of_nll = true;
  template <int Mode, class T>
  HD Slopes<T> slopes(const Row<T>& row) const {
    return {row.weight * (T(1) + T(eps) * exp_negative(-row.nll)), T(0)};
  }
  template <int Mode, class T>
  HD T normaliser(const Row<T>& row) const {
    return row.weight;
  }
};

using Ops = Family<PointwiseOps<CharbonnierLoss, LogCoshLoss, PinballLoss, WingLoss, TanhGelu, SoftplusBeta,
                                AsymmetricFocalLoss, WelschLoss>,
                   RowOps<GeneralizedCrossEntropy, Poly1Loss>>;

}  // namespace lossreg
