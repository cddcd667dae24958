#pragma once
// Activations that are gates of gated units too: each by itself is an op of activation.h, and times a second tensor one
// of gated.h.
#include <string>

#include "../../skeletons/formula.h"

namespace lossreg {

// Ramachandran et al., Searching for activation functions, arXiv 1710.05941. beta = 1 is SiLU.
struct Swish {
  static constexpr auto name = "swish";
  static constexpr auto args = "Tensor input, float beta=1.0";
  static constexpr int inputs = 1, gradients = 1;
  static constexpr Shapes shapes = Shapes::same;
  Parameter beta;

  static Swish make(double beta) {
    expect(beta == beta, name, "beta that is a number", beta);
    return {beta};
  }
  template <class T>
  HD T value(T x) const {
    return x * sigmoid(T(beta) * x);
  }
  template <class T>
  HD Gradients<T, 1> grad(T x) const {
    return {slope_of_gated(x, T(beta) * x, T(beta))};
  }
  // d x sigmoid(z) / dx, where z grows with x by dz.
  template <class T>
  HD static T slope_of_gated(T x, T z, T dz) {
    // sigmoid(z), and sigmoid(z) sigmoid(-z) with all its digits, of one exponential
    T e = exp_negative(-abs(z)), r = inverse_1p_unit(e);
    T p = z >= T(0) ? r : e * r, slope = e * r * r;
    // not z * slope: where beta * x overflows, the slope is 0
    return p + x * (dz * slope);
  }
};

// Hendrycks and Gimpel, Gaussian error linear units, arXiv 1606.08415: x times the probability that a standard normal
// variable is below x. The approximation by tanh is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct Gelu {
  static constexpr auto name = "gelu";
  static constexpr auto args = "Tensor input, str approximate=\"none\"";
  static constexpr int inputs = 1, gradients = 1;
  static constexpr Shapes shapes = Shapes::same;
  bool by_tanh;

  static Gelu make(const std::string& approximate) { return {is_by_tanh(name, approximate)}; }
  static bool is_by_tanh(const char* op, const std::string& approximate) {
    if (approximate != "none" && approximate != "tanh")
      fail(op, "approximate \"none\" or \"tanh\", got \"", approximate, "\"");
    return approximate == "tanh";
  }
  static constexpr int modes = 2;
  int mode() const { return by_tanh ? 1 : 0; }

  // Beyond 100 the gate is 0 or 1, and the cube of x may overflow.
  template <class T>
  HD static T within_100(T x) {
    return clamp(x, T(-100), T(100));
  }
  template <class T>
  HD static T twice_u(T c) {
    return c * (T(1.5957691216057307118) + T(0.071354816272600248) * (c * c));
  }
  template <int Mode, class T>
  HD T value(T x) const {
    if constexpr (Mode == 1) return x * sigmoid(twice_u(within_100(x)));
    T tail = normal_tail(abs(x), exp_negative(T(-0.5) * (x * x)));
    return x * (x < T(0) ? tail : T(1) - tail);
  }
  template <int Mode, class T>
  HD Gradients<T, 1> grad(T x) const {
    if constexpr (Mode == 1) {
      T c = within_100(x);
      T growth = T(1.5957691216057307118) + T(3 * 0.071354816272600248) * (c * c);
      return {Swish::slope_of_gated(x, twice_u(c), growth)};
    }
    T e = exp_negative(T(-0.5) * (x * x)), tail = normal_tail(abs(x), e);
    return {(x < T(0) ? tail : T(1) - tail) + x * (T(0.39894228040143267794) * e)};
  }
};

}  // namespace lossreg
