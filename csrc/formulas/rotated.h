#pragma once
// Losses of rotated boxes.
#include "../base/special.h"
#include "../skeletons/boxwise/formula.h"

namespace lossreg {

// Sine and cosine of the difference of two angles. What rounding takes from the difference of large angles is made up
// for: in a product with long sides, an error of the sine would hide what is left of thin ones.
template <class T>
struct Turn {
  T sine, cosine;
  HD static Turn between(T a, T b) {
    const T difference = a - b, back = difference - a;
    const T lost = (a - (difference - back)) - (b + back);
    const T s = sin(difference), c = cos(difference);
    return {s + lost * c, c - lost * s};
  }
};

// Murrugarra-Llerena et al., Probabilistic Intersection-over-Union for Training and Evaluation of Oriented Object
// Detectors, arXiv 2106.06072: the Hellinger distance of two boxes as normal distributions, whose variances along the
// sides are w^2 / 12 and h^2 / 12.
struct ProbIoULoss {
  static constexpr auto name = "prob_iou_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\", float eps=1e-07";
  static constexpr int inputs = 2, gradients = 2, numbers = 5;
  Parameter eps;

  static ProbIoULoss make(Reduction, double eps) {
    expect(eps >= 0 && eps < INFINITY, name, "finite eps >= 0", eps);
    return {eps};
  }

  // The centres' offset along the sides of one of the boxes, which is turned by sine and cosine; the quadratic form of
  // the offset in the adjugate of its covariance is ((h u)^2 + (w v)^2) / 12.
  template <class T>
  struct Offset {
    T sine, cosine, u, v;
    HD static Offset of(const RotatedBox<T>& box, T dx, T dy) {
      const T s = sin(box.angle), c = cos(box.angle);
      return {s, c, c * dx + s * dy, c * dy - s * dx};
    }
    HD T square(T w, T h) const { return (h * u * h * u + w * v * w * v) * T(1. / 12); }
  };

  // Of the sum of the covariances: its determinant is D = apart + common, where common is four times the root of the
  // product of the two determinants, and apart is a sum of squares that are all 0 where the boxes are alike. So log(D /
  // common) keeps its digits beside 0, and D those of thin boxes.
  template <class T>
  struct Shapes {
    T w1, h1, w2, h2;  // sizes, of any sign
    Turn<T> turn;
    T areas, crossed, straight;  // what the three squares are of
    T apart, common;
    HD static Shapes of(const RotatedPair<T>& b) {
      Shapes k;
      k.w1 = abs(b.input.w), k.h1 = abs(b.input.h), k.w2 = abs(b.target.w), k.h2 = abs(b.target.h);
      k.turn = Turn<T>::between(b.input.angle, b.target.angle);
      const T s = k.turn.sine, c = k.turn.cosine;
      k.areas = k.w1 * k.h1 - k.w2 * k.h2;
      k.crossed = c * (k.h1 * k.w2 - k.w1 * k.h2);
      k.straight = s * (k.w1 * k.w2 - k.h1 * k.h2);
      k.apart = (k.areas * k.areas + k.crossed * k.crossed + k.straight * k.straight) * T(1. / 144);
      k.common = (k.w1 * k.h1) * (k.w2 * k.h2) * T(1. / 36);
      return k;
    }
  };

  // The Bhattacharyya distance Q / (4 (D + eps)) + log(D / (common + eps) + eps) / 2, before it is clamped.
  template <class T>
  struct Distance {
    T square, determinant, value;
  };
  template <class T>
  HD Distance<T> distance(const Shapes<T>& k, T square) const {
    const T e = T(eps), determinant = k.apart + k.common, denominator = k.common + e;
    // without eps, boxes of no area
    const T quotient = quotient_or(determinant == T(0) ? T(0) : T(INFINITY), determinant, denominator) + e;
    const T beside_one = (k.apart - e) / denominator + e;
    // where the quotient is near 1 its logarithm is that of what it is beyond 1
    const bool near = quotient > T(0.5) && quotient < T(2);
    const T log_quotient = near ? log1p(near ? beside_one : T(0)) : log(quotient);
    const T far = quotient_or(square == T(0) ? T(0) : T(INFINITY), square, determinant + e);
    // the logarithm is above -800, whatever eps
    const T value = T(0.25) * far + T(0.5) * log_quotient;
    return {square, determinant, far > T(2000) ? far : value};
  }
  template <class T>
  HD T square(const RotatedPair<T>& b, const Offset<T>& first, const Offset<T>& second) const {
    return first.square(b.input.w, b.input.h) + second.square(b.target.w, b.target.h);
  }
  template <class T>
  HD T clamped(T distance) const {
    return clamp(distance, T(eps), T(kMost));
  }
  static constexpr double kMost = 100;

  template <class T>
  HD T value(const RotatedPair<T>& b) const {
    const T dx = b.input.x - b.target.x, dy = b.input.y - b.target.y;
    const T q = square(b, Offset<T>::of(b.input, dx, dy), Offset<T>::of(b.target, dx, dy));
    return sqrt(one_minus_exp(clamped(distance(Shapes<T>::of(b), q).value)) + T(eps));
  }
  template <class T>
  HD RotatedPair<T> grad(const RotatedPair<T>& b) const {
    const T dx = b.input.x - b.target.x, dy = b.input.y - b.target.y, e = T(eps);
    const auto first = Offset<T>::of(b.input, dx, dy), second = Offset<T>::of(b.target, dx, dy);
    const auto k = Shapes<T>::of(b);
    const Distance<T> d = distance(k, square(b, first, second));
    const T at = clamped(d.value), loss = sqrt(one_minus_exp(at) + e);
    // the clamp's bounds belong to the slope
    const bool outside = d.value < e || d.value > T(kMost);
    const T step = outside ? T(0) : T(0.5) * exp_negative(-at) * inverse_or_0(loss);

    // slopes of the loss in Q, apart and common
    const T denominator = k.common + e, per_determinant = step * inverse_or_0(d.determinant + e);
    const T in_square = T(0.25) * per_determinant;
    const T of_far = in_square * d.square * inverse_or_0(d.determinant + e);
    const T of_log = T(0.5) * step * inverse_or_0(d.determinant + e * denominator);
    const T in_apart = of_log - of_far;
    const T in_common = -of_log * (k.apart - e) * inverse_or_0(denominator) - of_far;
    return slopes(b, k, first, second, in_square, in_apart, in_common);
  }
  // From the slopes in these to those in the boxes' numbers.
  template <class T>
  HD RotatedPair<T> slopes(const RotatedPair<T>& b, const Shapes<T>& k, const Offset<T>& first, const Offset<T>& second,
                           T in_square, T in_apart, T in_common) const {
    const T s = k.turn.sine, c = k.turn.cosine;
    const T areas = in_apart * T(1. / 72) * k.areas, crossed = in_apart * T(1. / 72) * c * k.crossed;
    const T straight = in_apart * T(1. / 72) * s * k.straight, common = in_common * T(1. / 36);
    // the derivative of both squares; a square box has none
    const T first_square = (k.w1 - k.h1) * (k.w1 + k.h1), second_square = (k.w2 - k.h2) * (k.w2 + k.h2);
    const T turned = in_apart * T(1. / 72) * s * c * first_square * second_square;
    RotatedPair<T> g;
    g.input = of_offset(b.input, first, in_square);
    g.target = of_offset(b.target, second, in_square);
    g.input.x = g.input.x + g.target.x;
    g.input.y = g.input.y + g.target.y;
    g.target.x = -g.input.x;
    g.target.y = -g.input.y;
    g.input.angle = g.input.angle + turned;
    g.target.angle = g.target.angle - turned;
    // the size of a side has no slope at 0, as torch.abs
    g.input.w =
        g.input.w + sign(b.input.w) * (areas * k.h1 - crossed * k.h2 + straight * k.w2 + common * k.h1 * k.w2 * k.h2);
    g.input.h =
        g.input.h + sign(b.input.h) * (areas * k.w1 + crossed * k.w2 - straight * k.h2 + common * k.w1 * k.w2 * k.h2);
    g.target.w =
        g.target.w + sign(b.target.w) * (crossed * k.h1 - areas * k.h2 + straight * k.w1 + common * k.w1 * k.h1 * k.h2);
    g.target.h = g.target.h +
                 sign(b.target.h) * (-areas * k.w2 - crossed * k.w1 - straight * k.h1 + common * k.w1 * k.h1 * k.w2);
    return g;
  }
  // The slopes of one box's part of Q; those of the centre are in the offset.
  template <class T>
  HD static RotatedBox<T> of_offset(const RotatedBox<T>& box, const Offset<T>& o, T in_square) {
    const T step = in_square * T(1. / 6), along = step * box.h * box.h * o.u, across = step * box.w * box.w * o.v;
    // a square has no slope in its angle
    const T turned = step * ((box.h - box.w) * (box.h + box.w)) * (o.u * o.v);
    return {o.cosine * along - o.sine * across, o.sine * along + o.cosine * across, step * box.w * o.v * o.v,
            step * box.h * o.u * o.u, turned};
  }
};

using Ops = BoxOps<ProbIoULoss>;

}  // namespace lossreg
