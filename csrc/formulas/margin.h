#pragma once
#include "../skeletons/formula.h"

namespace lossreg {

// log(1 + e^(-t x)), finite where torch's own overflows.
struct SoftMarginLoss {
  static constexpr auto name = "soft_margin_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr Shapes shapes = Shapes::to_input;
  static constexpr unsigned typed_by = 0b01;

  static SoftMarginLoss make(Reduction) { return {}; }
  template <class T>
  HD T value(T x, T t) const {
    return softplus(-t * x);
  }
  template <class T>
  HD Gradients<T, 1> grad(T x, T t) const {
    return {-t * sigmoid(-t * x)};
  }
};

// x where t = 1, max(0, margin - x) where t = -1, their sum elsewhere, as torch has it.
struct HingeEmbeddingLoss {
  static constexpr auto name = "hinge_embedding_loss";
  static constexpr auto args = "Tensor input, Tensor target, float margin=1.0, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr Shapes shapes = Shapes::broadcast;
  static constexpr unsigned typed_by = 0b01;
  Parameter margin;

  static HingeEmbeddingLoss make(double margin, Reduction) {
    expect(margin == margin, name, "margin that is a number", margin);
    return {margin};
  }
  template <class T>
  HD T value(T x, T t) const {
    T similar = t != T(-1) ? x : T(0);
    T dissimilar = t != T(1) ? relu(T(margin) - x) : T(0);
    return similar + dissimilar;
  }
  template <class T>
  HD Gradients<T, 1> grad(T x, T t) const {
    T similar = t != T(-1) ? T(1) : T(0);
    // the kink belongs to the slope, as in torch's clamp_min
    T dissimilar = t != T(1) && T(margin) - x >= T(0) ? T(-1) : T(0);
    return {similar + dissimilar};
  }
};

// max(0, margin - t (x1 - x2)).
struct MarginRankingLoss {
  static constexpr auto name = "margin_ranking_loss";
  static constexpr auto args = "Tensor input1, Tensor input2, Tensor target, float margin=0.0, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 3;
  static constexpr Shapes shapes = Shapes::same_rank;
  Parameter margin;

  static MarginRankingLoss make(double margin, Reduction) {
    expect(margin == margin, name, "margin that is a number", margin);
    return {margin};
  }
  template <class T>
  HD T value(T x1, T x2, T t) const {
    return relu(T(margin) - t * (x1 - x2));
  }
  template <class T>
  HD Gradients<T, 3> grad(T x1, T x2, T t) const {
    T difference = x1 - x2;
    bool active = T(margin) - t * difference >= T(0);
    return {active ? -t : T(0), active ? t : T(0), active ? -difference : T(0)};
  }
};

using Ops = PointwiseOps<SoftMarginLoss, HingeEmbeddingLoss, MarginRankingLoss>;

}  // namespace lossreg
