#pragma once
// Branch-free scalar mathematics for host and device: what the formulas are written in.
//
// The float versions compile to straight-line vector code on the CPU, which calls of libm would not, and call a GPU's
// own functions there. Of the double versions the exponential does so too, and the others call libm: float64 is for
// verification more than for speed. Every bound below is checked on a dense grid by tests/kernels/cpp/math_test.cpp.
// NaN goes in, NaN comes out.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "compiler.h"

namespace lossreg {

template <class To, class From>
HD To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// Is T a type for which a GPU has instructions where others compare and choose? These give a NaN of either argument.
#if defined(LOSSREG_ON_DEVICE)
template <class T>
constexpr bool has_instructions = std::is_same_v<T, float>;
HD float larger_or_nan(float x, float y) {
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(y));
  return x;
}
HD float smaller_or_nan(float x, float y) {
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(y));
  return x;
}
#else
template <class T>
constexpr bool has_instructions = false;
#endif

// Comparisons are written so that a NaN in the first argument survives.
template <class T>
HD T abs(T x) {
  if constexpr (has_instructions<T>) return ::fabsf(x);
  else return x < T(0) ? -x : x;
}
template <class T>
HD T at_least(T x, T low) {
  if constexpr (has_instructions<T>) return larger_or_nan(x, low);
  else return x < low ? low : x;
}
template <class T>
HD T at_most(T x, T high) {
  if constexpr (has_instructions<T>) return smaller_or_nan(x, high);
  else return x > high ? high : x;
}
// The larger, and the smaller, of two: a NaN of either argument survives.
template <class T>
HD T maximum(T x, T y) {
  if constexpr (has_instructions<T>) return larger_or_nan(x, y);
  const T z = x < y ? y : x;
  return y != y ? y : z;
}
template <class T>
HD T minimum(T x, T y) {
  if constexpr (has_instructions<T>) return smaller_or_nan(x, y);
  const T z = y < x ? y : x;
  return y != y ? y : z;
}
template <class T>
HD T relu(T x) {
  return at_least(x, T(0));
}
template <class T>
HD T clamp(T x, T low, T high) {
  if constexpr (has_instructions<T>) return smaller_or_nan(larger_or_nan(x, low), high);
  T y = x < low ? low : x;
  return y > high ? high : y;
}
// The smaller and the larger of two numbers. Where one is NaN, a GPU's result is; elsewhere it is b.
template <class T>
HD T smaller(T a, T b) {
  if constexpr (has_instructions<T>) return smaller_or_nan(a, b);
  else return a < b ? a : b;
}
template <class T>
HD T larger(T a, T b) {
  if constexpr (has_instructions<T>) return larger_or_nan(a, b);
  else return a > b ? a : b;
}
template <class T>
HD T sign(T x) {
  return x > T(0) ? T(1) : (x < T(0) ? T(-1) : x * T(0));
}

// (e^r - 1 - r) / r^2 for |r| <= ln(2)/2
HD float exp_tail(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}

// e^r for |r| <= ln(2)/2, of the smallest relative error that a polynomial of its degree can have: 9.2e-8.
HD float exp_fraction(float r) {
  float p = 8.2902720291e-3f;
  p = p * r + 4.1898159659e-2f;
  p = p * r + 1.6667638129e-1f;
  p = p * r + 4.9999147841e-1f;
  p = p * r + 9.9999970631e-1f;
  return p * r + 1.f;
}

// e^x. Relative error below 2e-7 on [-86.9, 88.72]; 0 below -87 (the value there is under 2e-38, and denormals are slow
// to compute with), infinity above.
HD float exp(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::expf(x);
#else
  constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  // at these bounds the scale below is 0 and the product infinite, without a further look at x
  float c = clamp(x, -87.2f, 89.f);
  float shifted = c * 1.44269504088896341f + round;
  float n = shifted - round;
  // ln 2 in two parts: n times the first one is exact
  float r = c - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // 2^(n-1), doubled afterwards: 2^128 has no float
  float scale = bits<float>((bits<uint32_t>(shifted) + 126u) << 23);
  return exp_fraction(r) * scale * 2.f;
#endif
}
// The same for x <= 0, or above it by a rounding error, with a few steps less; 0 below -87.7.
HD float exp_negative(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::expf(x);
#else
  constexpr float round = 12582912.f;
  float c = at_least(x, -87.9f);
  float shifted = c * 1.44269504088896341f + round;
  float n = shifted - round;
  float r = c - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  return exp_fraction(r) * bits<float>((bits<uint32_t>(shifted) + 127u) << 23);
#endif
}
// The same in double: 2^n e^r, with e^r by its series to r^13. Relative error below 5e-16 where the result is no
// denormal, which is rounded twice; 0 below -746, infinity above 709.79.
HD double exp(double x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::exp(x);
#else
  constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  // at these bounds the scales' product is 0 and infinite, without a further look at x
  const double c = clamp(x, -800.0, 800.0);
  const double n = (c * 1.4426950408889634 + round) - round;
  double r = c - n * 0.693147180369123816490;  // ln 2 in two parts: n times the first one is exact
  r = r - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r;
  // 2^n as a product of two, each of which has a double: from -1155 to 1155
  const double half = n * 0.5 + round, rest = (n - (half - round)) + round;
  const double scale = bits<double>((bits<uint64_t>(half) + 1023u) << 52);
  return (p * scale + scale) * bits<double>((bits<uint64_t>(rest) + 1023u) << 52);
#endif
}
HD double exp_negative(double x) {
  return exp(x);
}

// e^x for x <= 0 as one term of a sum whose greatest is 1, or as a probability: what counts is its error beside 1,
// below 3e-7, and not beside e^x. On a GPU that is two instructions.
HD float exp_term(float x) {
#if defined(LOSSREG_ON_DEVICE)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504088896341f));
  return y;
#elif defined(LOSSREG_EMULATE)
  // as that instruction: 22 bits of the result are right, and numbers too small for its format become 0
  const float y = ::exp2f(x * 1.44269504088896341f);
  return y < 1.17549435e-38f ? 0.f : bits<float>(bits<uint32_t>(y) & ~1u);
#else
  return exp_negative(x);
#endif
}
template <class T>
HD T exp_term(T x) {
  return exp_negative(x);
}
// Natural logarithm. Relative error below 2e-7 for every positive float; -inf at 0, NaN below.
HD float log(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::logf(x);
#else
  bool tiny = x < 1.17549435e-38f;
  float scaled = tiny ? x * 8388608.f : x;
  uint32_t b = bits<uint32_t>(scaled);
  // x = 2^e * m with m in [sqrt(1/2), sqrt(2))
  uint32_t shifted = b - 0x3f3504f3u;
  int32_t e = int32_t(shifted) >> 23;
  float m = bits<float>((shifted & 0x007fffffu) + 0x3f3504f3u);
  float n = float(e) - (tiny ? 23.f : 0.f);
  // log m = 2 atanh(s), s = (m-1)/(m+1), |s| <= 0.1716
  float f = m - 1.f;
  float s = f / (m + 1.f), z = s * s;
  float p = 0.22222222f;
  p = p * z + 0.28571429f;
  p = p * z + 0.4f;
  p = p * z + 0.66666667f;
  // 2s = f - s f, which keeps the leading term exact
  float y = f - s * (f - p * z);
  y = n * 0.693359375f + (y - n * 2.12194440e-4f);
  y = x == INFINITY ? x : y;
  y = x == 0.f ? -INFINITY : y;
  y = x < 0.f ? NAN : y;
  return x != x ? x : y;
#endif
}
HD double log(double x) {
  return ::log(x);
}

// log(1 - x) for x in [0, 1], which keeps its digits near 0; NaN above. Relative error below 3e-7.
HD float log1m(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return x < 0.f ? NAN : ::log1pf(-x);
#else
  // the logarithm of 1 - x as it is rounded, and the first term of what the rounding took
  const float y = 1.f - x, lost = (1.f - y) - x;
  return log(y) + lost / at_least(y, 5.9604645e-8f);
#endif
}
HD double log1m(double x) {
  return ::log1p(-x);
}

// log(1 + u) for u in [0, 1]. Relative error below 2e-7.
HD float log1p_unit(float u) {
#if defined(LOSSREG_ON_DEVICE)
  // log(1 + u) / u, of the smallest relative error that ten terms can have. A division takes a GPU longer.
  float p = -3.244025167e-3f;
  p = p * u + 1.985146292e-2f;
  p = p * u - 5.695953220e-2f;
  p = p * u + 1.060365513e-1f;
  p = p * u - 1.530559212e-1f;
  p = p * u + 1.967593879e-1f;
  p = p * u - 2.495413423e-1f;
  p = p * u + 3.332996368e-1f;
  p = p * u - 4.999990165e-1f;
  return u * (p * u + 1.f);
#else
  // 2 atanh(s), s = u/(2+u) <= 1/3
  float s = u / (2.f + u), z = s * s;
  float p = 1.f / 15.f;
  p = p * z + 1.f / 13.f;
  p = p * z + 1.f / 11.f;
  p = p * z + 1.f / 9.f;
  p = p * z + 1.f / 7.f;
  p = p * z + 1.f / 5.f;
  p = p * z + 1.f / 3.f;
  return 2.f * (s + s * z * p);
#endif
}
HD double log1p_unit(double u) {
  return ::log1p(u);
}

// log(1 + u), which keeps its digits near 0; -inf at -1, NaN below. Relative error below 3e-7.
HD float log1p(float u) {
#if defined(LOSSREG_ON_DEVICE)
  return ::log1pf(u);
#else
  // the logarithm of 1 + u as it is rounded, and the first term of what the rounding took; nothing where u is infinite
  const float y = 1.f + u, lost = u - (y - 1.f);
  return log(y) + (y < INFINITY ? lost : 0.f) / at_least(y, 5.9604645e-8f);
#endif
}
HD double log1p(double u) {
  return ::log1p(u);
}

// 1 / (1 + e) for e in [0, 4]. Relative error below 2e-7.
template <class T>
HD T inverse_1p_unit(T e) {
#if defined(LOSSREG_ON_DEVICE)
  if constexpr (has_instructions<T>) {
    // an approximation, and one step of Newton's; a division looks for numbers too small or large for that
    const float x = 1.f + e;
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r + r * (1.f - x * r);
  }
#endif
  return T(1) / (T(1) + e);
}

// 1 - e^-u for u >= 0, which keeps its digits near 0. Relative error below 1.5e-7.
HD float one_minus_exp(float u) {
#if defined(LOSSREG_ON_DEVICE)
  return -::expm1f(-u);
#else
  // as exp(-u) = 2^n (1 + p), but 1 - 2^n is exact and nothing is added to p
  constexpr float low = -86.6f, round = 12582912.f;  // 1.5 * 2^23
  float c = at_least(-u, low);
  float shifted = c * 1.44269504088896341f + round;
  float n = shifted - round;
  float r = c - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = exp_tail(r) * (r * r) + r;
  float scale = bits<float>((bits<uint32_t>(shifted) + 127u) << 23);
  return (1.f - scale) - scale * p;
#endif
}
HD double one_minus_exp(double u) {
  return -::expm1(-u);
}

// log2 m for m in [sqrt(1/2), sqrt(2)), and 2^t for |t| < 1000, in double: for powers, whose error is that of the
// logarithm times the exponent.
HD double log2_of_fraction(double m) {
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 2.0 / 11.0;
  p = p * z + 2.0 / 9.0;
  p = p * z + 2.0 / 7.0;
  p = p * z + 2.0 / 5.0;
  p = p * z + 2.0 / 3.0;
  p = p * z + 2.0;
  return p * s * 1.4426950408889634;
}
HD double exp2_of(double t) {
  // 2^t = 2^n * e^(r ln 2), n the nearest integer
  constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = t + round, r = (t - (shifted - round)) * 0.6931471805599453;
  double q = 1.0 / 5040.0;
  q = q * r + 1.0 / 720.0;
  q = q * r + 1.0 / 120.0;
  q = q * r + 1.0 / 24.0;
  q = q * r + 1.0 / 6.0;
  q = q * r + 0.5;
  q = q * r + 1.0;
  q = q * r + 1.0;
  return q * bits<double>((bits<uint64_t>(shifted) + 1023u) << 52);
}

// x^y for x in [0, 1], y >= 0, with 0^0 = 1. Relative error below 2e-7 down to results of 1e-37; 0 below.
HD float pow_unit(float x, float y) {
#if defined(LOSSREG_ON_DEVICE)
  return ::powf(x, y);
#else
  bool tiny = x < 1.17549435e-38f;
  float scaled = tiny ? x * 8388608.f : x;
  uint32_t shifted = bits<uint32_t>(scaled) - 0x3f3504f3u;
  float e = float(int32_t(shifted) >> 23) - (tiny ? 23.f : 0.f);
  double m = bits<float>((shifted & 0x007fffffu) + 0x3f3504f3u);
  double t = (double(e) + log2_of_fraction(m)) * double(y);
  t = t < -126.0 ? -126.0 : t;
  float result = float(exp2_of(t));
  result = t <= -126.0 ? 0.f : result;
  result = x == 0.f ? 0.f : result;
  result = y == 0.f ? 1.f : result;
  return x != x ? x : result;
#endif
}
HD double pow_unit(double x, double y) {
  return ::pow(x, y);
}

// The probability that a standard normal variable is above a, for a >= 0, given e = exp_negative(-a^2 / 2): who asks
// for it mostly wants the density too. Relative error below 5e-7 for an exact e.
HD float normal_tail(float a, float e) {
  // e times a function that falls like 1 / a: t times a polynomial in t, of the smallest relative error that ten terms
  // can have. Beyond 16 e is 0.
  const float t = inverse_1p_unit(clamp(a, 0.f, 16.f) * 0.25f);
  float p = 1.978197967e-2f;
  p = p * t - 8.087718072e-2f;
  p = p * t + 9.559684694e-2f;
  p = p * t - 3.171729193e-2f;
  p = p * t + 6.369898169e-2f;
  p = p * t + 5.897519186e-2f;
  p = p * t + 8.160310130e-2f;
  p = p * t + 9.346635596e-2f;
  p = p * t + 9.973643159e-2f;
  return e * (t * (p * t + 9.973556672e-2f));
}
HD double normal_tail(double a, double) {
  return 0.5 * ::erfc(a * 0.70710678118654752440);
}

// x / y; where y is 0, what is to stand there.
template <class T>
HD T quotient_or(T otherwise, T x, T y) {
  return y == T(0) ? otherwise : x / y;
}
// 1 / x, and 0 where that is infinite.
template <class T>
HD T inverse_or_0(T x) {
  T y = T(1) / x;
  return abs(y) == T(INFINITY) ? T(0) : y;
}

HD float sqrt(float x) {
  return ::sqrtf(x);
}
HD double sqrt(double x) {
  return ::sqrt(x);
}

// The angle of the point (x, y), as std::atan2 has it but for the sign of zeros. Relative error below 3e-7 for finite
// arguments; 0 at the origin.
HD float atan2(float y, float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::atan2f(y, x);
#else
  float a = abs(x), b = abs(y);
  bool steep = b > a;
  float longer = steep ? b : a, shorter = steep ? a : b;
  float t = longer == 0.f ? 0.f : shorter / longer, z = t * t;
  // (atan(t) - t) / t^3 for t in [0, 1], of the smallest relative error of the sum that eight terms can have
  float p = 2.92069092e-3f;
  p = p * z - 1.63679235e-2f;
  p = p * z + 4.32118513e-2f;
  p = p * z - 7.55221397e-2f;
  p = p * z + 1.06660046e-1f;
  p = p * z - 1.42110556e-1f;
  p = p * z + 1.99937731e-1f;
  p = p * z - 3.33331525e-1f;
  float angle = t + t * (z * p);
  angle = steep ? 1.57079637f - angle : angle;
  angle = x < 0.f ? 3.14159274f - angle : angle;
  return y < 0.f ? -angle : angle;
#endif
}
HD double atan2(double y, double x) {
  return ::atan2(y, x);
}

// A factor that the gradient takes for a constant. The tests' dual numbers lose their slope here.
template <class T>
HD T detached(T x) {
  return x;
}

// 1 / (1 + e^-x). Relative error below 3e-7 for x > -86; 0 far below.
template <class T>
HD T sigmoid(T x) {
  T e = exp_negative(-abs(x)), r = inverse_1p_unit(e);
  return x < T(0) ? e * r : r;
}

// log(1 + e^x), finite for every finite x. Relative error below 4e-7.
template <class T>
HD T softplus(T x) {
  return relu(x) + log1p_unit(exp_negative(-abs(x)));
}

}  // namespace lossreg
