#pragma once
#include "../skeletons/rowwise/formula.h"

namespace lossreg {

// Cross entropy over s cos(theta_c) whose target class is handicapped by a margin m. What both have in common.
struct AngularMargin : RowFormula {
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool has_margin = true;
  double margin, scale;
  // Scores that are no cosines are not refused, but said, where a look costs nothing: on the CPU. With room for what
  // normalisation in 16 bits leaves.
  static constexpr auto advice = "cosine in [-1, 1], of features and weights that are normalised";
  template <class T>
  HD bool is_suspect(T cosine) const {
    return abs(cosine) > T(1.05);
  }

  template <class T>
  HD T logit(T cosine) const {
    return T(scale) * cosine;
  }
  template <class T>
  HD T logit_slope() const {
    return T(scale);
  }
};

// Deng et al., ArcFace, arXiv 1801.07698: the target's logit is s cos(theta + m).
struct ArcFaceLoss : AngularMargin {
  static constexpr auto name = "arcface_loss";
  static constexpr auto args =
      "Tensor cosine, Tensor target, float margin=0.5, float scale=64.0, int ignore_index=-100, "
      "str reduction=\"mean\"";
  double cos_m, sin_m;

  static ArcFaceLoss make(double margin, double scale, int64_t ignore_index, Reduction) {
    constexpr double pi = 3.14159265358979323846;
    expect(margin >= 0 && margin <= pi, name, "margin in [0, pi]", margin);
    expect(scale > 0 && scale < INFINITY, name, "finite scale > 0", scale);
    return {{{ignore_index}, margin, scale}, std::cos(margin), std::sin(margin)};
  }

  // sin^2 theta, as a product so that it keeps its digits near |cos theta| = 1
  template <class T>
  HD T sine_squared(T x) const {
    return (T(1) - x) * (T(1) + x);
  }
  // beyond theta = pi - m, cos(theta + m) would rise again
  template <class T>
  HD bool is_hard(T x) const {
    return x > T(-cos_m);
  }
  template <class T>
  HD T target_logit(T x) const {
    T sine = sqrt(at_least(sine_squared(x), T(1e-7)));
    T hard = x * T(cos_m) - sine * T(sin_m), easy = x - T(margin * sin_m);
    return T(scale) * (is_hard(x) ? hard : easy);
  }
  template <class T>
  HD T target_slope(T x) const {
    T square = sine_squared(x);
    // the clamp passes the gradient on where it does nothing
    T cotangent = square >= T(1e-7) ? x / sqrt(at_least(square, T(1e-7))) : T(0);
    return T(scale) * (is_hard(x) ? T(cos_m) + T(sin_m) * cotangent : T(1));
  }
};

// Wang et al., Additive margin softmax, arXiv 1801.05599 (CosFace, 1801.09414): the target's logit is s (cos theta -
// m).
struct AMSoftmaxLoss : AngularMargin {
  static constexpr auto name = "amsoftmax_loss";
  static constexpr auto args =
      "Tensor cosine, Tensor target, float margin=0.35, float scale=30.0, int ignore_index=-100, "
      "str reduction=\"mean\"";

  static AMSoftmaxLoss make(double margin, double scale, int64_t ignore_index, Reduction) {
    expect(margin >= 0 && margin < INFINITY, name, "finite margin >= 0", margin);
    expect(scale > 0 && scale < INFINITY, name, "finite scale > 0", scale);
    return {{{ignore_index}, margin, scale}};
  }

  template <class T>
  HD T target_logit(T x) const {
    return T(scale) * (x - T(margin));
  }
  template <class T>
  HD T target_slope(T) const {
    return T(scale);
  }
};

using Ops = RowOps<ArcFaceLoss, AMSoftmaxLoss>;

}  // namespace lossreg
