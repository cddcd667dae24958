#pragma once
#include "shared/gates.h"

namespace lossreg {

// Howard et al., Searching for MobileNetV3, arXiv 1905.02244. At the kinks -3 and 3: as torch, 0 and the slope inside.
struct HardSwish {
  static constexpr auto name = "hard_swish";
  static constexpr auto args = "Tensor input";
  static constexpr int inputs = 1, gradients = 1;
  static constexpr Shapes shapes = Shapes::same;

  static HardSwish make() { return {}; }
  template <class T>
  HD T value(T x) const {
    return x * (clamp(x + T(3), T(0), T(6)) * T(1.0 / 6));
  }
  template <class T>
  HD Gradients<T, 1> grad(T x) const {
    T inside = x * T(1.0 / 3) + T(0.5);
    T below = x > T(-3) ? inside : x * T(0);
    return {x >= T(3) ? T(1) : below};
  }
};

// Misra, arXiv 1908.08681. With e = e^x, tanh(log(1 + e)) = n / (n + 2), n = e(e + 2); from x = 20 on it is 1.
struct Mish {
  static constexpr auto name = "mish";
  static constexpr auto args = "Tensor input";
  static constexpr int inputs = 1, gradients = 1;
  static constexpr Shapes shapes = Shapes::same;

  static Mish make() { return {}; }
  template <class T>
  HD T value(T x) const {
    T e = exp(x > T(20) ? T(20) : x), n = e * (e + T(2));
    return x * (n / (n + T(2)));
  }
  template <class T>
  HD Gradients<T, 1> grad(T x) const {
    // of one x: what the exponential is held at, its factor is too
    T c = x > T(20) ? T(20) : x, e = exp(c), n = e * (e + T(2)), r = T(1) / (n + T(2));
    // d tanh(softplus x)/dx = (1 - tanh^2) sigmoid(x) = 4 e (1 + e) / (n + 2)^2
    return {n * r + c * (T(4) * e * (T(1) + e) * r) * r};
  }
};

// x sigmoid(1.702 x): the first approximation of GELU, which CLIP's models keep.
struct QuickGelu {
  static constexpr auto name = "quick_gelu";
  static constexpr auto args = "Tensor input";
  static constexpr int inputs = 1, gradients = 1;
  static constexpr Shapes shapes = Shapes::same;
  Swish swish;

  static QuickGelu make() { return {{1.702}}; }
  template <class T>
  HD T value(T x) const {
    return swish.value(x);
  }
  template <class T>
  HD Gradients<T, 1> grad(T x) const {
    return swish.grad(x);
  }
};

// So et al., Primer: searching for efficient transformers, arXiv 2109.08668.
struct ReluSquared {
  static constexpr auto name = "relu_squared";
  static constexpr auto args = "Tensor input";
  static constexpr int inputs = 1, gradients = 1;
  static constexpr Shapes shapes = Shapes::same;

  static ReluSquared make() { return {}; }
  template <class T>
  HD T value(T x) const {
    T positive = relu(x);
    return positive * positive;
  }
  template <class T>
  HD Gradients<T, 1> grad(T x) const {
    return {T(2) * relu(x)};
  }
};

using Ops = PointwiseOps<Swish, HardSwish, Mish, Gelu, QuickGelu, ReluSquared>;

}  // namespace lossreg
