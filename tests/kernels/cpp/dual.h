#pragma once
// Forward-mode dual numbers: a value and its derivative along one direction. The oracle of the formulas' gradients;
// argument-dependent lookup finds these overloads where a formula calls exp, log, ... unqualified. What math.h writes
// as a template over T (abs, relu, sigmoid, ...) needs none.
#include <limits>

#include "base/special.h"

namespace lossreg {

template <class T>
struct Dual {
  T value, slope;

  Dual() = default;
  explicit Dual(T value, T slope = T(0)) : value(value), slope(slope) {}
  explicit operator int() const { return int(value); }

  friend Dual operator-(Dual a) { return Dual(-a.value, -a.slope); }
  friend Dual operator+(Dual a, Dual b) { return Dual(a.value + b.value, a.slope + b.slope); }
  friend Dual operator-(Dual a, Dual b) { return Dual(a.value - b.value, a.slope - b.slope); }
  friend Dual operator*(Dual a, Dual b) { return Dual(a.value * b.value, a.slope * b.value + a.value * b.slope); }
  friend Dual operator/(Dual a, Dual b) {
    T quotient = a.value / b.value;
    return Dual(quotient, (a.slope - quotient * b.slope) / b.value);
  }
  Dual& operator+=(Dual b) { return *this = *this + b; }
  Dual& operator-=(Dual b) { return *this = *this - b; }
  Dual& operator*=(Dual b) { return *this = *this * b; }

  friend bool operator==(Dual a, Dual b) { return a.value == b.value; }
  friend bool operator!=(Dual a, Dual b) { return a.value != b.value; }
  friend bool operator<(Dual a, Dual b) { return a.value < b.value; }
  friend bool operator<=(Dual a, Dual b) { return a.value <= b.value; }
  friend bool operator>(Dual a, Dual b) { return a.value > b.value; }
  friend bool operator>=(Dual a, Dual b) { return a.value >= b.value; }
};

template <class T>
Dual<T> exp_negative(Dual<T> x) {
  T y = exp_negative(x.value);
  return Dual<T>(y, y * x.slope);
}
template <class T>
Dual<T> exp(Dual<T> x) {
  T y = exp(x.value);
  return Dual<T>(y, y * x.slope);
}
template <class T>
Dual<T> sin(Dual<T> x) {
  return Dual<T>(sin(x.value), cos(x.value) * x.slope);
}
template <class T>
Dual<T> cos(Dual<T> x) {
  return Dual<T>(cos(x.value), -sin(x.value) * x.slope);
}
template <class T>
Dual<T> log(Dual<T> x) {
  return Dual<T>(log(x.value), x.slope / x.value);
}
template <class T>
Dual<T> log1p_unit(Dual<T> x) {
  return Dual<T>(log1p_unit(x.value), x.slope / (T(1) + x.value));
}
template <class T>
Dual<T> log1p(Dual<T> x) {
  return Dual<T>(log1p(x.value), x.slope / (T(1) + x.value));
}
template <class T>
Dual<T> log1m(Dual<T> x) {
  return Dual<T>(log1m(x.value), -x.slope / (T(1) - x.value));
}
template <class T>
Dual<T> one_minus_exp(Dual<T> x) {
  return Dual<T>(one_minus_exp(x.value), exp_negative(-x.value) * x.slope);
}
// The second argument follows from the first, and has no slope of its own.
template <class T>
Dual<T> normal_tail(Dual<T> a, Dual<T> e) {
  return Dual<T>(normal_tail(a.value, e.value), T(-0.39894228040143267794) * e.value * a.slope);
}
template <class T>
Dual<T> tanh(Dual<T> x) {
  T y = tanh(x.value);
  return Dual<T>(y, (T(1) - y * y) * x.slope);
}
template <class T>
Dual<T> sqrt(Dual<T> x) {
  T y = sqrt(x.value);
  return Dual<T>(y, x.slope / (T(2) * y));
}
template <class T>
Dual<T> atan2(Dual<T> y, Dual<T> x) {
  return Dual<T>(atan2(y.value, x.value),
                 (x.value * y.slope - y.value * x.slope) / (x.value * x.value + y.value * y.value));
}
template <class T>
Dual<T> detached(Dual<T> x) {
  return Dual<T>(x.value);
}
// A term whose factor is exactly 0 is left out: 0 * infinity at x = 0 is no derivative.
template <class T>
Dual<T> pow_unit(Dual<T> x, Dual<T> y) {
  T power = pow_unit(x.value, y.value), slope = T(0);
  if (x.slope != T(0) && y.value != T(0)) slope += y.value * pow_unit(x.value, y.value - T(1)) * x.slope;
  if (y.slope != T(0)) slope += power * log(x.value) * y.slope;
  return Dual<T>(power, slope);
}

}  // namespace lossreg

// The lowest number, where a running maximum starts.
template <class T>
struct std::numeric_limits<lossreg::Dual<T>> {
  static lossreg::Dual<T> lowest() { return lossreg::Dual<T>(std::numeric_limits<T>::lowest()); }
};
