#pragma once
#include "../skeletons/formula.h"

namespace lossreg {

struct L1Loss {
  static constexpr auto name = "l1_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr bool says_broadcast = true;

  static L1Loss make(Reduction) { return {}; }
  template <class T>
  HD T value(T x, T t) const {
    return abs(x - t);
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T g = sign(x - t);
    return {g, -g};
  }
};

struct MSELoss {
  static constexpr auto name = "mse_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr bool says_broadcast = true;

  static MSELoss make(Reduction) { return {}; }
  template <class T>
  HD T value(T x, T t) const {
    T r = x - t;
    return r * r;
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T g = T(2) * (x - t);
    return {g, -g};
  }
};

// Girshick, Fast R-CNN, arXiv 1504.08083. beta = 0 is the L1 loss.
struct SmoothL1Loss {
  static constexpr auto name = "smooth_l1_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\", float beta=1.0";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr bool says_broadcast = true;
  Parameter beta, slope;  // slope: 1 / beta

  static SmoothL1Loss make(Reduction, double beta) {
    expect(beta >= 0, name, "beta >= 0", beta);
    return {beta, beta > 0 ? 1 / beta : INFINITY};
  }
  // beta; 0, nothing is inside, where the slope is more than a T holds
  template <class T>
  HD T width() const {
    return T(slope) == T(INFINITY) ? T(0) : T(beta);
  }
  template <class T>
  HD T value(T x, T t) const {
    T r = abs(x - t), b = width<T>();
    return r < b ? T(0.5) * r * (r * T(slope)) : r - T(0.5) * b;
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    // where nothing is inside, by two factors that leave no denormal below 1
    bool steep = width<T>() == T(0);
    T first = steep ? T(1e38) : T(slope), second = steep ? T(sizeof(T) == 8 ? 1e300 : 1e38) : T(1);
    T g = clamp((x - t) * first * second, T(-1), T(1));
    return {g, -g};
  }
};

// Huber, Robust estimation of a location parameter, 1964.
struct HuberLoss {
  static constexpr auto name = "huber_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\", float delta=1.0";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr unsigned typed_by = 0b01;
  static constexpr bool says_broadcast = true;
  Parameter delta;

  static HuberLoss make(Reduction, double delta) {
    expect(delta > 0, name, "delta > 0", delta);
    return {delta};
  }
  template <class T>
  HD T value(T x, T t) const {
    T r = abs(x - t), d = T(delta);
    return r <= d ? T(0.5) * r * r : d * (r - T(0.5) * d);
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T g = clamp(x - t, -T(delta), T(delta));
    return {g, -g};
  }
};

using Ops = PointwiseOps<L1Loss, MSELoss, SmoothL1Loss, HuberLoss>;

}  // namespace lossreg
