#pragma once
// What focal losses are made of: the two probabilities of a logit, and the power that turns easy elements down.
#include "../../skeletons/formula.h"

namespace lossreg {

// sigmoid(x) and sigmoid(-x), each with all its digits, and log(1 + e^-|x|), of one exponential.
template <class T>
struct Logit {
  T p, q, log_term;
  bool negative;

  HD explicit Logit(T x) : negative(x < T(0)) {
    T e = exp_negative(-abs(x)), larger = inverse_1p_unit(e), smaller = e * larger;
    p = negative ? smaller : larger;
    q = negative ? larger : smaller;
    log_term = log1p_unit(e);
  }
  // -log sigmoid(x) and -log sigmoid(-x)
  HD T minus_log_p(T x) const { return negative ? log_term - x : log_term; }
  HD T minus_log_q(T x) const { return negative ? log_term : log_term + x; }
  // The binary cross entropy for a target t in between, by the sign of x so that nothing large cancels.
  HD T cross_entropy(T x, T t) const { return (negative ? -x * t : x * (T(1) - t)) + log_term; }
};

// m^gamma for any m: a target outside of [0, 1] makes m negative, or larger than 1.
struct Focus {
  Parameter gamma;
  Parameter of_negative = 1, largest = INFINITY;  // (-1)^gamma, and what m^gamma is finite for

  static Focus make(const char* op, const char* what, double gamma) {
    if (!(gamma >= 0 && gamma < INFINITY)) fail(op, "finite ", what, " >= 0, got ", gamma);
    bool whole = gamma == ::floor(gamma), odd = ::fmod(gamma, 2.0) == 1.0;
    return {gamma, whole ? (odd ? -1.0 : 1.0) : double(NAN), ::exp2(127.9 / gamma)};
  }
  // Two needs no power.
  bool squares() const { return gamma == 2; }

  template <bool Squares, class T>
  HD T power(T m) const {
    if constexpr (Squares) return m * m;
    T size = pow_unit(abs(m), T(gamma));
    // as a float, pow_unit is as exact beyond 1, but does not overflow to infinity
    if constexpr (sizeof(T) == 4) size = abs(m) > T(largest) ? T(INFINITY) : size;
    return m < T(0) ? T(of_negative) * size : size;
  }
  // The same for an m in [0, 1].
  template <bool Squares, class T>
  HD T power_unit(T m) const {
    if constexpr (Squares) return m * m;
    return pow_unit(m, T(gamma));
  }
  // gamma m^(gamma-1), of the power by one division; 0 where m is
  template <bool Squares, class T>
  HD T slope(T m, T power) const {
    if constexpr (Squares) return T(2) * m;
    return m != T(0) ? T(gamma) * power / m : T(0);
  }
};

}  // namespace lossreg
