#pragma once
// Lean: a float whose functions are shorter and less exact, to compute in where memory holds 16 bits a number. Rounding
// to bfloat16 costs up to 2^-9 of a value and to float16 up to 2^-12 (2.4e-4); the functions here stay below 1e-5, in a
// third of the instructions. Sums, products and comparisons are a float's own.
//
// A formula, generic in its type T, does not know the difference. On a GPU the functions are made of what it has one
// instruction for, elsewhere of steps that a vector loop takes.
#include "math.h"

namespace lossreg {

// Of PTX, "approx": relative errors of at most 2^-22, of log2 between 1/2 and 2 an absolute one. With ftz denormals are
// 0, which costs nothing; without, three instructions more.
namespace approximate {
#if defined(LOSSREG_ON_DEVICE)
HD float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
HD float log2(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
HD float log2_of_normal(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
HD float divide(float x, float y) {
  float quotient;
  asm("div.full.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
  return quotient;
}
HD float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
HD float sqrt(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
// 2^c for c in [-127, 128], with a relative error below 2e-7; 0 and infinity at these ends, and below -126 some number
// that is no normal one.
HD float exp2_within(float c) {
  constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = c + round, r = c - (shifted - round);
  // 2^r for |r| <= 1/2, of the smallest relative error that a polynomial of its degree can have that is 1 at 0
  float p = 1.326472731e-03f;
  p = p * r + 9.671512991e-03f;
  p = p * r + 5.550733581e-02f;
  p = p * r + 2.402224243e-01f;
  p = p * r + 6.931470037e-01f;
  p = p * r + 1.f;
  // into the exponent: nothing where p is a NaN, whose last bits are 0, as of all that comes from 16 bits
  return bits<float>(bits<uint32_t>(p) + (bits<uint32_t>(shifted) << 23));
}
HD float exp2(float x) {
  return exp2_within(clamp(x, -127.f, 128.f));
}
// The same for x <= 0, or above it by a rounding error.
HD float exp2_negative(float x) {
  return exp2_within(at_least(x, -127.f));
}

// A positive number as 2^n m, m in [sqrt(1/2), sqrt(2)).
struct Binary {
  float n, m;
  HD explicit Binary(float x) {
    const uint32_t b = bits<uint32_t>(x) - 0x3f3504f3u;
    n = float(int32_t(b) >> 23);
    m = bits<float>((b & 0x007fffffu) + 0x3f3504f3u);
  }
};
// `y` where that is the logarithm of a positive number x; what the logarithm is of any other.
HD float or_end(float y, float x) {
  y = x < INFINITY ? y : x;
  y = x == 0.f ? -INFINITY : y;
  return x < 0.f ? NAN : y;
}
// With a relative error below 1e-7, for powers, whose error is that of the logarithm times the exponent.
HD float log2_of_normal(float x) {
  // log m = 2 atanh(s)
  const Binary b(x);
  const float s = (b.m - 1.f) / (b.m + 1.f), z = s * s;
  float p = 4.3096203e-1f;
  p = p * z + 5.7675396e-1f;
  p = p * z + 9.6179826e-1f;
  return or_end(b.n + s * (p * z + 2.8853901f), x < 1.17549435e-38f ? x * 0.f : x);
}
HD float log2(float x) {
  const bool tiny = x < 1.17549435e-38f;
  return log2_of_normal(tiny ? x * 8388608.f : x) - (tiny ? 23.f : 0.f);
}
// n log 2 + log(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)). Relative error below 2e-6.
HD float log_of_parts(float n, float f) {
  // (log(1 + f) - f) / f^2, of the smallest relative error of the logarithm that six terms can have
  float p = 1.1950146e-1f;
  p = p * f - 1.8587847e-1f;
  p = p * f + 2.0449049e-1f;
  p = p * f - 2.4919041e-1f;
  p = p * f + 3.3319223e-1f;
  p = p * f - 5.0000849e-1f;
  return n * 0.693147180559945309f + (f + f * f * p);
}
HD float log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const Binary b(tiny ? x * 8388608.f : x);
  return or_end(log_of_parts(b.n - (tiny ? 23.f : 0.f), b.m - 1.f), x);
}
// log(1 + f), which keeps its digits near 0.
HD float log_beside_one(float f) {
  const float x = 1.f + f;
  const Binary b(x);
  return or_end(log_of_parts(b.n, b.n == 0.f ? f : b.m - 1.f), x);
}
HD float divide(float x, float y) {
  return x / y;
}
HD float reciprocal(float x) {
  const float y = 1.f / (::fabsf(x) < 1.17549435e-38f ? x * 0.f : x);
  return ::fabsf(y) < 1.17549435e-38f ? y * 0.f : y;
}
HD float sqrt(float x) {
  return ::sqrtf(x);
}
#endif
}  // namespace approximate

struct Lean {
  float value;

  Lean() = default;
  template <class Number>
  HD explicit Lean(Number x) : value(float(x)) {}
  HD explicit operator float() const { return value; }
  HD explicit operator double() const { return double(value); }

  HD friend Lean operator-(Lean a) { return Lean(-a.value); }
  HD friend Lean operator+(Lean a, Lean b) { return Lean(a.value + b.value); }
  HD friend Lean operator-(Lean a, Lean b) { return Lean(a.value - b.value); }
  HD friend Lean operator*(Lean a, Lean b) { return Lean(a.value * b.value); }
  HD friend Lean operator/(Lean a, Lean b) { return Lean(approximate::divide(a.value, b.value)); }
  HD Lean& operator+=(Lean b) { return *this = *this + b; }

  HD friend bool operator==(Lean a, Lean b) { return a.value == b.value; }
  HD friend bool operator!=(Lean a, Lean b) { return a.value != b.value; }
  HD friend bool operator<(Lean a, Lean b) { return a.value < b.value; }
  HD friend bool operator<=(Lean a, Lean b) { return a.value <= b.value; }
  HD friend bool operator>(Lean a, Lean b) { return a.value > b.value; }
  HD friend bool operator>=(Lean a, Lean b) { return a.value >= b.value; }
};

HD Lean abs(Lean x) {
  return Lean(::fabsf(x.value));
}
HD Lean relu(Lean x) {
  return Lean(relu(x.value));
}
HD Lean at_least(Lean x, Lean low) {
  return Lean(at_least(x.value, low.value));
}
HD Lean at_most(Lean x, Lean high) {
  return Lean(at_most(x.value, high.value));
}
HD Lean maximum(Lean x, Lean y) {
  return Lean(maximum(x.value, y.value));
}
HD Lean minimum(Lean x, Lean y) {
  return Lean(minimum(x.value, y.value));
}
HD Lean clamp(Lean x, Lean low, Lean high) {
  return Lean(clamp(x.value, low.value, high.value));
}
HD Lean smaller(Lean a, Lean b) {
  return Lean(smaller(a.value, b.value));
}
HD Lean larger(Lean a, Lean b) {
  return Lean(larger(a.value, b.value));
}
// What lies below 2^-124 counts as 0.
HD Lean quotient_or(Lean otherwise, Lean x, Lean y) {
  // a quarter of both: the reciprocal of a number beyond 2^126 is a denormal
  const float quotient = x.value * 0.25f * approximate::reciprocal(y.value * 0.25f);
  return Lean(::fabsf(y.value) < 4.70197740e-38f ? otherwise.value : quotient);
}
HD Lean inverse_or_0(Lean x) {
  return quotient_or(Lean(0.f), Lean(1.f), x);
}
HD Lean inverse_1p_unit(Lean e) {
  return Lean(inverse_1p_unit(e.value));
}
HD Lean sqrt(Lean x) {
  return Lean(approximate::sqrt(x.value));
}

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// Relative errors below 1e-5, as of all that follow; 0 below -87.3.
HD Lean exp(Lean x) {
  return Lean(approximate::exp2(x.value * kLog2E));
}
HD Lean exp_negative(Lean x) {
#if defined(LOSSREG_ON_DEVICE)
  return exp(x);
#else
  return Lean(approximate::exp2_negative(x.value * kLog2E));
#endif
}

// log(1 + f) beside 1, where a logarithm of 1 + f as it is rounded would lose its digits: |f| <= 1/16.
HD float log_beside_one(float f) {
  float p = -2.507836223e-1f;
  p = p * f + 3.341166079e-1f;
  p = p * f - 4.999992847e-1f;
  return f * (p * f + 9.999996424e-1f);
}
#if defined(LOSSREG_ON_DEVICE)
HD Lean log(Lean x) {
  const float f = x.value - 1.f;
  return Lean(::fabsf(f) < 0.0625f ? log_beside_one(f) : approximate::log2(x.value) * kLn2);
}
HD Lean log1m(Lean x) {
  return Lean(::fabsf(x.value) < 0.0625f ? log_beside_one(-x.value)
                                         : approximate::log2_of_normal(1.f - x.value) * kLn2);
}
HD Lean log1p(Lean u) {
  return Lean(::fabsf(u.value) < 0.0625f ? log_beside_one(u.value) : approximate::log2(1.f + u.value) * kLn2);
}
#else
HD Lean log(Lean x) {
  return Lean(approximate::log(x.value));
}
HD Lean log1m(Lean x) {
  return Lean(approximate::log_beside_one(-x.value));
}
HD Lean log1p(Lean u) {
  return Lean(approximate::log_beside_one(u.value));
}
#endif
HD Lean log1p_unit(Lean u) {
  float p = 1.414102409e-2f;
  p = p * u.value - 6.640180200e-2f;
  p = p * u.value + 1.492238790e-1f;
  p = p * u.value - 2.350386083e-1f;
  p = p * u.value + 3.310945034e-1f;
  p = p * u.value - 4.998696446e-1f;
  return Lean(u.value * (p * u.value + 9.999987483e-1f));
}

HD Lean one_minus_exp(Lean u) {
#if !defined(LOSSREG_ON_DEVICE)
  return Lean(one_minus_exp(u.value));
#else
  float p = -3.770999238e-2f;
  p = p * u.value + 1.660550833e-1f;
  p = p * u.value - 4.999693036e-1f;
  const float near = u.value * (p * u.value + 9.999997616e-1f);
  return Lean(u.value < 0.25f ? near : 1.f - approximate::exp2(-u.value * kLog2E));
#endif
}

// Below 3e-5, and where y is large below 3e-7 y: no worse than what a last digit of x makes of the result. 0^0 is 1: as
// the logarithm of 0 stands the lowest number, without a branch. A denormal x counts as 0.
HD Lean pow_unit(Lean x, Lean y) {
  return Lean(approximate::exp2(y.value * at_least(approximate::log2_of_normal(x.value), -3.40282347e38f)));
}

HD Lean normal_tail(Lean a, Lean e) {
  const float t = inverse_1p_unit(clamp(a.value, 0.f, 16.f) * 0.25f);
  float p = -3.937274798e-2f;
  p = p * t + 8.618441057e-2f;
  p = p * t + 6.414437704e-3f;
  p = p * t + 7.401360449e-2f;
  p = p * t + 7.976903376e-2f;
  p = p * t + 9.351381378e-2f;
  p = p * t + 9.974142763e-2f;
  return Lean(e.value * (t * (p * t + 9.973545798e-2f)));
}

HD Lean atan2(Lean y, Lean x) {
  float a = ::fabsf(x.value), b = ::fabsf(y.value);
  bool steep = b > a;
  float longer = steep ? b : a, shorter = steep ? a : b;
  float t = quotient_or(Lean(0.f), Lean(shorter), Lean(longer)).value, z = t * t;
  float p = -1.395509858e-2f;
  p = p * z + 5.877025053e-2f;
  p = p * z - 1.225150079e-1f;
  p = p * z + 1.961831003e-1f;
  p = p * z - 3.330889940e-1f;
  float angle = t + t * (z * p);
  angle = steep ? 1.57079637f - angle : angle;
  angle = x.value < 0.f ? 3.14159274f - angle : angle;
  return Lean(::copysignf(angle, y.value));
}

}  // namespace lossreg
