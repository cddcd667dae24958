#pragma once
// More of math.h: functions of any argument, general powers, hyperbolic, trigonometric and error functions. As there,
// the float versions are straight-line vector code on the CPU and a GPU's own functions there, the double versions are
// libm's, NaN goes in and NaN comes out, and tests/kernels/cpp/special_test.cpp checks every bound. Beside 16-bit
// storage they are a float's.
#include "lean.h"

namespace lossreg {

// The largest integer that is not above x.
HD float floor(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::floorf(x);
#else
  // from 2^23 on every float is an integer, and in double there is room for the halves below it
  constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  const double y = (double(x) + round) - round, down = y > double(x) ? y - 1.0 : y;
  return abs(x) < 8388608.f ? float(down) : x;
#endif
}
HD double floor(double x) {
  return ::floor(x);
}

// e^x - 1, which keeps its digits near 0. Relative error below 3e-7; -1 far below.
HD float expm1(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::expm1f(x);
#else
  // as one_minus_exp; with half of 2^n, since 2^128 has no float
  constexpr float round = 12582912.f;
  const float c = clamp(x, -86.6f, 89.f);
  const float shifted = c * 1.44269504088896341f + round, n = shifted - round;
  float r = c - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  const float p = exp_tail(r) * (r * r) + r;
  const float half = bits<float>((bits<uint32_t>(shifted) + 126u) << 23);
  return ((half - 0.5f) + half * p) * 2.f;
#endif
}
HD double expm1(double x) {
  return ::expm1(x);
}

// x^y for any x and y, as std::pow has it: NaN for a negative x and a y that is no integer. Relative error below 2e-7.
// In double, because the error of log x is multiplied by y.
HD float pow(float x, float y) {
#if defined(LOSSREG_ON_DEVICE)
  return ::powf(x, y);
#else
  const float a = abs(x);
  const bool tiny = a < 1.17549435e-38f;
  const float scaled = tiny ? a * 8388608.f : a;
  const uint32_t shifted = bits<uint32_t>(scaled) - 0x3f3504f3u;
  const float e = float(int32_t(shifted) >> 23) - (tiny ? 23.f : 0.f);
  const double m = bits<float>((shifted & 0x007fffffu) + 0x3f3504f3u);
  double t = (double(e) + log2_of_fraction(m)) * double(y);
  t = clamp(t, -200.0, 200.0);
  float result = float(exp2_of(t));
  // 0 and infinity have no logarithm
  const float at_zero = y > 0.f ? 0.f : INFINITY, at_infinity = y > 0.f ? INFINITY : 0.f;
  result = a == 0.f ? at_zero : result;
  result = a == INFINITY ? at_infinity : result;
  result = y == 0.f ? 1.f : result;
  const float half = y * 0.5f, whole = floor(y) == y ? result : (a == INFINITY || a == 0.f ? result : NAN);
  const float of_odd = floor(half) == half || floor(y) != y ? whole : -whole;
  result = x < 0.f ? of_odd : result;
  result = x != x ? x : result;
  return y != y ? y : result;
#endif
}
HD double pow(double x, double y) {
  return ::pow(x, y);
}

// Relative error below 5e-7.
HD float tanh(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::tanhf(x);
#else
  const float u = one_minus_exp(2.f * abs(x)), t = u / (2.f - u);
  return x < 0.f ? -t : t;
#endif
}
HD double tanh(double x) {
  return ::tanh(x);
}

// log((e^x + e^-x) / 2), finite for every finite x. Relative error below 1e-6.
template <class T>
HD T log_cosh(T x) {
  // log(1 + sinh^2 x) / 2 near 0, and |x| - log 2 + log(1 + e^(-2|x|)) where nothing cancels there
  const T a = abs(x), u = one_minus_exp(T(2) * a), rest = T(1) - u;
  const bool near = a < T(0.55);
  const T y = log1p_unit(near ? u * u / (T(4) * rest) : rest);
  return near ? T(0.5) * y : (a - T(0.69314718055994531)) + y;
}

// e^(-x^2). Relative error below 4e-7 down to results of 1e-37.
template <class T>
HD T exp_of_square(T x) {
  // what rounding takes of x^2 is an error of e^(-x^2) as large
  if constexpr (sizeof(T) == 4) {
    const double square = double(float(x)) * double(float(x));
    const T high = T(float(square));
    return exp_negative(-high) * (T(1) - T(float(square - double(float(high)))));
  } else {
    return exp_negative(-(x * x));
  }
}

// The complement of the error function, 2 / sqrt(pi) times the integral of e^(-t^2) from x on. Relative error below
// 8e-7 down to results of 1e-37; 0 below.
HD float erfc(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::erfcf(x);
#else
  // erfc(a) e^(a^2) / t in t = 1 / (1 + a/2), of the smallest relative error that ten terms can have
  const float a = abs(x), t = 1.f / (1.f + 0.5f * a), s = t - 0.5f;
  float p = 1.168450611e-02f;
  p = p * s - 6.749136329e-02f;
  p = p * s + 4.651035080e-02f;
  p = p * s + 9.732268241e-02f;
  p = p * s - 1.029607351e-01f;
  p = p * s - 1.720190993e-01f;
  p = p * s + 1.457433757e-01f;
  p = p * s + 5.589429630e-01f;
  p = p * s + 6.871609279e-01f;
  p = p * s + 5.107913572e-01f;
  const float y = exp_of_square(at_most(a, 12.f)) * (t * p);
  return x < 0.f ? 2.f - y : y;
#endif
}
HD double erfc(double x) {
  return ::erfc(x);
}

// The error function. Relative error below 5e-7.
HD float erf(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::erff(x);
#else
  const float a = abs(x), z = x * x;
  // erf(x) / x in x^2, of the smallest relative error that seven terms can have
  float p = 8.185090926e-05f;
  p = p * z - 8.097702767e-04f;
  p = p * z + 5.196952025e-03f;
  p = p * z - 2.685770507e-02f;
  p = p * z + 1.128366400e-01f;
  p = p * z - 3.761263161e-01f;
  p = p * z + 1.128379166e+00f;
  const float far = 1.f - erfc(a);
  return a < 0.9f ? x * p : x < 0.f ? -far : far;
#endif
}
HD double erf(double x) {
  return ::erf(x);
}

// Sine and cosine of an angle of at most 1e6. Error below 2e-7 beside 1.
HD float sine_of_quadrant(float x, uint32_t quadrants) {
  // in double: what is left of a large angle keeps its digits
  constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = double(x) * 0.63661977236758134 + round, n = shifted - round;
  const float r = float(double(x) - n * 1.5707963267948966), z = r * r;
  float s = 2.7557319e-6f, c = -2.7557319e-7f;
  s = s * z - 1.9841270e-4f;
  s = s * z + 8.3333333e-3f;
  s = s * z - 1.6666667e-1f;
  s = r + r * (z * s);
  c = c * z + 2.4801587e-5f;
  c = c * z - 1.3888889e-3f;
  c = c * z + 4.1666667e-2f;
  c = c * z - 0.5f;
  c = c * z + 1.f;
  const uint32_t quadrant = uint32_t(bits<uint64_t>(shifted)) + quadrants;
  const float y = quadrant & 1u ? c : s;
  return quadrant & 2u ? -y : y;
}
HD float sin(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::sinf(x);
#else
  return sine_of_quadrant(x, 0);
#endif
}
HD double sin(double x) {
  return ::sin(x);
}
HD float cos(float x) {
#if defined(LOSSREG_ON_DEVICE)
  return ::cosf(x);
#else
  return sine_of_quadrant(x, 1);
#endif
}
HD double cos(double x) {
  return ::cos(x);
}

HD Lean floor(Lean x) {
  return Lean(floor(x.value));
}
HD Lean expm1(Lean x) {
  return Lean(expm1(x.value));
}
HD Lean pow(Lean x, Lean y) {
  return Lean(pow(x.value, y.value));
}
HD Lean tanh(Lean x) {
  return Lean(tanh(x.value));
}
HD Lean erfc(Lean x) {
  return Lean(erfc(x.value));
}
HD Lean erf(Lean x) {
  return Lean(erf(x.value));
}
HD Lean sin(Lean x) {
  return Lean(sin(x.value));
}
HD Lean cos(Lean x) {
  return Lean(cos(x.value));
}

}  // namespace lossreg
