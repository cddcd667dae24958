#pragma once
// The mathematics of regions of pixels, which every backend calls: functions of scalars, so that a backend only reads,
// sums and writes. tests/kernels/cpp/regions_test.cpp compares their slopes with dual numbers.
#include "../../base/dtype.h"
#include "../../base/log_sum_exp.h"
#include "../formula.h"

namespace lossreg {

// Labels that are no class.
constexpr int32_t kIgnored = -1, kUnknown = -2;

// q^p of a probability q, and its derivative.
struct Power {
  double p = 1;
  static constexpr int modes = 3;  // p = 1, p = 2, any other
  int mode() const { return p == 1 ? 0 : p == 2 ? 1 : 2; }
  static constexpr int kOneOrTwo = modes;  // the first two modes in one, told apart where the code runs
  template <int Mode, class T>
  HD T value(T q) const {
    if constexpr (Mode == 0) return q;
    if constexpr (Mode == 1) return q * q;
    if constexpr (Mode == kOneOrTwo) return p == 1 ? q : q * q;
    return q < T(0) ? T(NAN) : pow_unit(q, T(p));
  }
  template <int Mode, class T>
  HD T slope(T q) const {
    if constexpr (Mode == 0) return T(1);
    if constexpr (Mode == 1) return T(2) * q;
    if constexpr (Mode == kOneOrTwo) return p == 1 ? T(1) : T(2) * q;
    return q < T(0) ? T(NAN) : T(p) * pow_unit(q, T(p - 1));
  }
};

// Tversky's index of predicted and true regions, (A + s) / (A + alpha (Q - A) + beta (Y - A) + s) with A, Q and Y the
// sums of q y, q^p and y^p over pixels and classes: what is predicted and not there counts alpha, what is there and not
// predicted beta. The loss is (1 - index)^gamma. Dice's and Jaccard's are indices with an alpha and a beta of their
// own.
struct Tversky {
  double alpha, beta, smooth, gamma = 1;
};
// The derivatives in A, Q and Y of a region's loss.
template <class T>
struct OverlapSlopes {
  static constexpr int count = 3;
  T a, q, y;
  HD OverlapSlopes times(T w) const { return {w * a, w * q, w * y}; }
};
template <class T>
struct Overlap {
  T loss;
  OverlapSlopes<T> slopes;
  HD static Overlap of(T shared, T of_q, T of_y, const Tversky& k) {
    const T alpha = T(k.alpha), beta = T(k.beta), s = T(k.smooth);
    const T wrong = alpha * (of_q - shared) + beta * (of_y - shared), size = shared + wrong + s;
    // both regions are empty, and s = 0: the limit for s to 0
    if (size == T(0)) return {T(0), {T(0), T(0), T(0)}};
    const T loss = wrong / size, index = (shared + s) / size;
    const OverlapSlopes<T> slopes = {(index * (T(1) - alpha - beta) - T(1)) / size, alpha * index / size,
                                     beta * index / size};
    if (k.gamma == 1) return {loss, slopes};
    // below 0 by a rounding error; at 0 the power has no slope, where it would be infinite or 0
    const T base = relu(loss), raised = pow_unit(base, T(k.gamma));
    return {raised, slopes.times(base == T(0) ? T(0) : T(k.gamma) * raised / base)};
  }
};
// What one pixel and class, of probability q and target y, adds to the sums. Soft: y is a probability, else 0 or 1.
template <class T>
struct OverlapTerms {
  T overlap, of_q, of_y;
};
template <bool Soft, int Mode, class T>
HD OverlapTerms<T> overlap_terms(const Power& power, T q, T y) {
  return {q * y, power.template value<Mode>(q), Soft ? power.template value<Mode>(y) : y};
}
// The derivative in q of a q y + b q^p; with q and y exchanged, that in y.
template <int Mode, class T>
HD T overlap_slope(const Power& power, T a, T b, T q, T y) {
  return a * y + b * power.template slope<Mode>(q);
}
// The derivatives in x, of which q is the sigmoid, and in y of what a pixel and class add to a region's loss.
template <class T>
struct PixelSlopes {
  T in_score, in_target;
};
template <int Mode, class T>
HD PixelSlopes<T> sigmoid_overlap_slopes(const Power& power, const OverlapSlopes<T>& k, T x, T y) {
  // 1 - q without cancellation
  const T e = exp_negative(-abs(x)), inverse = inverse_1p_unit(e);
  const T q = x < T(0) ? e * inverse : inverse, rest = x < T(0) ? inverse : e * inverse;
  return {q * rest * overlap_slope<Mode>(power, k.a, k.q, q, y), overlap_slope<Mode>(power, k.a, k.y, y, q)};
}

// The derivative in the probability of a class, hit: is the pixel of that class? Its target is then 1, else 0.
template <class T>
HD T class_slope(T a, T b, bool hit) {
  return b + (hit ? a : T(0));
}
// The derivative in the score of a class through a softmax, u that in its probability q, dot = sum_c q_c u_c.
template <class T>
HD T softmax_slope(T q, T u, T dot) {
  return q * (u - dot);
}

// Errors of the Lovasz losses, none below 0.
template <class T>
HD T region_error(T q, bool hit) {
  return hit ? abs(T(1) - q) : q;
}
template <class T>
HD T hinge_error(T x, bool hit) {
  return relu(T(1) - (hit ? x : -x));
}
// Integers that sort upwards as errors sort downwards, ignored pixels last. torch sorts integers by their digits, on
// the CPU in a fifteenth of the time that floats take; and bits keep every digit.
template <class T>
struct Key {
  using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  static constexpr DType dtype = sizeof(T) == 8 ? DType::int64 : DType::int32;
  static constexpr Bits ignored = sizeof(T) == 8 ? Bits(INT64_MAX) : Bits(INT32_MAX);
  HD static Bits of(T error) { return ignored - 1 - (bits<Bits>(error) & ignored); }  // without the sign of a NaN
  HD static T error(Bits key) { return bits<T>(Bits(ignored - 1 - key)); }
};

}  // namespace lossreg
