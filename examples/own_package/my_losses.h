#pragma once
#include <opreg/opreg.h>

namespace lossreg {

// Charbonnier and others, Two deterministic half-quadratic regularization algorithms, 1994: a smooth L1 loss.
struct CharbonnierLoss {
  static constexpr auto name = "charbonnier_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\", float eps=0.001";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  Parameter eps;

  static CharbonnierLoss make(Reduction, double eps) {
    expect(eps > 0, name, "eps > 0", eps);
    return {eps};
  }
  template <class T>
  HD T value(T x, T t) const {
    T r = x - t;
    return sqrt(r * r + T(eps) * T(eps));
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T g = (x - t) / value(x, t);
    return {g, -g};
  }
};

using Ops = PointwiseOps<CharbonnierLoss>;

}  // namespace lossreg
