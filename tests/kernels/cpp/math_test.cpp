// math.h in float against libm in double, on dense grids over the floats, and dtype.h against conversions written with
// ldexp and nearbyint. The bounds are those that the comments in math.h state.
#include "base/math.h"

#include <algorithm>
#include <cfloat>
#include <vector>

#include "base/dtype.h"
#include "base/lean.h"
#define LOSSREG_NO_CLONES  // a sanitizer is not ready when they are chosen
#include "cpu/lanes.h"
#include "report.h"

namespace lossreg {
namespace {

void test_exp() {
  Report r("exp");
  each_float(-86.9f, std::nextafter(88.722839f, 0.f), kStride,
             [&](float x) { r.near(x, exp(x), std::exp(double(x)), 2e-7); });
  for (float x : {std::nextafter(-87.f, -kInf), -88.f, -1000.f, -FLT_MAX, -kInf}) r.same(x, exp(x), 0);
  // the first float beyond the logarithm of the largest one, which is 88.72283905
  for (float x : {88.722839f, 89.f, 1000.f, FLT_MAX, kInf}) r.same(x, exp(x), kInf);
  for (float x : {0.f, -0.f, FLT_TRUE_MIN, -FLT_TRUE_MIN}) r.same(x, exp(x), 1);
  r.nan(NAN, exp(NAN));
}

void test_exp_negative() {
  Report r("exp_negative");
  // a little above 0 too: that is where rounding takes a sum that is 0
  each_float(-87.3f, 1.f, kStride, [&](float x) { r.near(x, exp_negative(x), std::exp(double(x)), 2e-7); });
  for (float x : {std::nextafter(-87.7f, -kInf), -88.f, -1000.f, -FLT_MAX, -kInf}) r.same(x, exp_negative(x), 0);
  for (float x : {0.f, -0.f, FLT_TRUE_MIN, -FLT_TRUE_MIN}) r.same(x, exp_negative(x), 1);
  r.nan(NAN, exp_negative(NAN));
}

void test_exp_in_double() {
  Report r("exp in double");
  // every float is a double whose exponential is no float; between them a number whose last digits are no zeros
  for (double x = -708.0; x < 709.78; x += 0.000317233719) r.near(x, exp(x), std::exp(x), 5e-16);
  // where the result is a denormal, half of its last bit is lost twice
  for (double x = -745.0; x < -708.0; x += 0.0031)
    r.expect(std::fabs(exp(x) - std::exp(x)) <= DBL_TRUE_MIN, x, exp(x), std::exp(x));
  for (double x : {-746.0, -800.0, -1e300, -double(kInf)}) r.same(x, exp(x), 0);
  for (double x : {709.79, 800.0, 1e300, double(kInf)}) r.same(x, exp(x), kInf);
  for (double x : {0.0, -0.0, DBL_TRUE_MIN, 1e-17}) r.same(x, exp(x), 1);
  r.nan(NAN, exp(double(NAN)));
}

void test_log() {
  Report r("log");
  each_float(FLT_TRUE_MIN, FLT_MAX, kStride, [&](float x) { r.near(x, log(x), std::log(double(x)), 2e-7); });
  // log 1 is 0 exactly, so that a perfect prediction costs nothing
  r.same(1, log(1.f), 0);
  for (float x : {0.f, -0.f}) r.same(x, log(x), -kInf);
  for (float x : {-FLT_TRUE_MIN, -1.f, -FLT_MAX, -kInf}) r.nan(x, log(x));
  r.same(kInf, log(kInf), kInf);
  r.nan(NAN, log(NAN));
}

void test_log1p_unit() {
  Report r("log1p_unit");
  each_float(FLT_MIN, 1.f, kStride / 4, [&](float u) { r.near(u, log1p_unit(u), std::log1p(double(u)), 2e-7); });
  each_float(0.f, FLT_MIN, kStride,
             [&](float u) { r.expect(abs(log1p_unit(u) - u) <= FLT_TRUE_MIN, u, log1p_unit(u), u); });
  r.same(0, log1p_unit(0.f), 0);
  r.nan(NAN, log1p_unit(NAN));
}

void test_one_minus_exp() {
  Report r("one_minus_exp");
  each_float(FLT_MIN, FLT_MAX, kStride, [&](float u) { r.near(u, one_minus_exp(u), -std::expm1(-double(u)), 1.5e-7); });
  r.same(0, one_minus_exp(0.f), 0);
  for (float u : {18.f, 86.5f, 86.7f, 1000.f, FLT_MAX, kInf}) r.same(u, one_minus_exp(u), 1);
  r.nan(NAN, one_minus_exp(NAN));
}

void test_pow_unit() {
  Report r("pow_unit");
  for (float y :
       {1e-30f, 1e-3f, 0.25f, 0.5f, 0.99f, 1.f, 1.5f, 2.f, 2.5f, 3.f, 3.7f, 10.f, 100.f, 1e4f, 1e8f, FLT_MAX}) {
    each_float(0.f, 1.f, 8 * kStride + 1, [&](float x) {
      double expected = std::pow(double(x), double(y));
      float got = pow_unit(x, y);
      if (expected >= 1e-37) r.near(x, got, expected, 2e-7);
      else if (expected < std::ldexp(1, -127)) r.same(x, got, 0);
      else r.expect(got == 0 || std::fabs(got / expected - 1) < 2e-7, x, got, expected);
    });
    // where x^y is neither 0 nor 1 for a large y
    each_float(std::fmax(0.5f, std::exp(-80 / std::fmax(y, 116.f))), 1.f, 1 + 16 * kStride / 100, [&](float x) {
      double expected = std::pow(double(x), double(y));
      if (expected >= 1e-37) r.near(x, pow_unit(x, y), expected, 2e-7);
    });
    r.same(0, pow_unit(0.f, y), 0);
    r.same(1, pow_unit(1.f, y), 1);
    r.nan(NAN, pow_unit(NAN, y));
  }
  for (float x : {0.f, FLT_TRUE_MIN, 0.5f, 1.f}) r.same(x, pow_unit(x, 0.f), 1);
}

void test_sigmoid() {
  Report r("sigmoid");
  auto exact = [](double x) { return 1 / (1 + std::exp(-x)); };
  each_float(std::nextafter(-86.f, 0.f), 100.f, kStride, [&](float x) { r.near(x, sigmoid(x), exact(x), 3e-7); });
  for (float x : {-89.f, -1000.f, -FLT_MAX, -kInf}) r.same(x, sigmoid(x), 0);
  for (float x : {1000.f, FLT_MAX, kInf}) r.same(x, sigmoid(x), 1);
  r.nan(NAN, sigmoid(NAN));
}

// Along rays: y every slope's worth of x, in every octant; and the axes.
void test_atan2() {
  Report r("atan2");
  for (float x : {1e-30f, 0.3f, 1.f, 7.f, 1e4f, 1e30f})
    for (float signed_x : {x, -x}) {
      each_float(1e-6f, 1e6f, 8 * kStride + 1, [&](float slope) {
        for (float y : {slope * x, -slope * x})
          r.near(slope, atan2(y, signed_x), std::atan2(double(y), signed_x), 3e-7);
      });
      r.near(x, atan2(0.f, signed_x), std::atan2(0., signed_x), 3e-7);
      r.near(x, atan2(signed_x, 0.f), std::atan2(double(signed_x), 0.), 3e-7);
      r.nan(x, atan2(NAN, signed_x));
      r.nan(x, atan2(signed_x, NAN));
    }
  r.same(0, atan2(0.f, 0.f), 0);
}

// The comment says finite and accurate. In numbers: 4e-7 relative, and 0 below -86.6 where exp is.
void test_log1p() {
  Report r("log1p");
  each_float(FLT_MIN, FLT_MAX, kStride, [&](float u) { r.near(u, log1p(u), std::log1p(double(u)), 3e-7); });
  r.same(0, log1p(0.f), 0);
  r.same(kInf, log1p(kInf), kInf);
  r.nan(NAN, log1p(NAN));
}

double exact_tail(double a) {
  return 0.5 * std::erfc(a * std::sqrt(0.5));
}
double bell(double a) {
  return std::exp(-0.5 * a * a);
}
void test_normal_tail() {
  Report r("normal_tail");
  // to where the bell is a normal float; its own rounding is no error of the function
  each_float(0.f, 13.f, kStride, [&](float a) {
    const float e = float(bell(a));
    r.near(a, normal_tail(a, e), exact_tail(a) / bell(a) * e, 5e-7);
  });
  for (float a : {20.f, 1e10f, kInf}) r.same(a, normal_tail(a, 0.f), 0);
  r.nan(NAN, normal_tail(NAN, NAN));
}

void test_softplus() {
  Report r("softplus");
  auto exact = [](double x) { return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))); };
  each_float(-87.3f, FLT_MAX, kStride, [&](float x) { r.near(x, softplus(x), exact(x), 4e-7); });
  each_float(-FLT_MAX, std::nextafter(-87.7f, -kInf), kStride, [&](float x) { r.same(x, softplus(x), 0); });
  r.nan(NAN, softplus(NAN));
}

void test_comparisons() {
  Report r("abs, relu, ...");
  for (float x : {-kInf, -FLT_MAX, -1.5f, -FLT_TRUE_MIN, 0.f, FLT_TRUE_MIN, 1.5f, FLT_MAX, kInf}) {
    r.same(x, abs(x), std::fabs(x));
    r.same(x, relu(x), std::fmax(x, 0.f));
    r.same(x, at_least(x, -1.f), std::fmax(x, -1.f));
    r.same(x, clamp(x, -1.f, 2.f), std::fmin(std::fmax(x, -1.f), 2.f));
    r.same(x, sign(x), (x > 0) - (x < 0));
    r.same(x, smaller(x, 1.f), std::fmin(x, 1.f));
    r.same(x, larger(x, 1.f), std::fmax(x, 1.f));
    r.same(x, quotient_or(5.f, x, 2.f), x / 2);
    r.same(x, quotient_or(5.f, x, 0.f), 5);
  }
  for (float x : {0.f, -0.f, FLT_TRUE_MIN, kInf}) r.same(x, inverse_or_0(x), 0);
  r.same(-4, inverse_or_0(-4.f), -0.25f);
  for (float y : {abs(NAN), relu(NAN), at_least(NAN, 0.f), clamp(NAN, 0.f, 1.f), sign(NAN), sqrt(NAN)}) r.nan(NAN, y);
  each_float(0.f, FLT_MAX, 64 * kStride, [&](float x) { r.same(x, sqrt(x), float(std::sqrt(double(x)))); });
}

void test_inverse_1p_unit() {
  Report r("inverse_1p_unit");
  each_float(0.f, 4.f, kStride, [&](float e) { r.near(e, inverse_1p_unit(e), 1 / (1 + double(e)), 2e-7); });
  r.nan(NAN, inverse_1p_unit(NAN));
}

// Lean's functions, on grids over the floats and on every number of 16 bits. The host has exact instructions where a
// GPU's are off by 2^-22 at most, which leaves half of each bound to them.
template <class Use>
void each_short(float low, float high, Use use) {
  auto one = [&](float x) {
    if (x >= low && x <= high) use(x);
  };
  each_float(low, high, 4 * kStride + 1, one);
  for (int s = 0; s < 65536; s++) one(widen<float>(BFloat16{uint16_t(s)})), one(widen<float>(Float16{uint16_t(s)}));
}
void test_lean() {
  auto lean = [](const char* name, float low, float high, double floor, auto function, auto exact) {
    Report r(name);
    each_short(low, high, [&](float x) {
      float got = float(function(Lean(x)));
      double expected = exact(double(x));
      if (std::fabs(expected) >= floor) r.near(x, got, expected, 6e-6);
      else r.expect(std::fabs(got) <= 1.001 * floor, x, got, expected);
    });
    r.nan(NAN, float(function(Lean(NAN))));
  };
  constexpr double kNormal = FLT_MIN;
  lean("Lean exp", -100.f, 88.7f, kNormal, [](Lean x) { return exp(x); }, [](double x) { return std::exp(x); });
  lean("Lean log", FLT_TRUE_MIN, FLT_MAX, 0, [](Lean x) { return log(x); }, [](double x) { return std::log(x); });
  lean("Lean log1m", 0.f, 0.999f, 0, [](Lean x) { return log1m(x); }, [](double x) { return std::log1p(-x); });
  lean(
      "Lean log1p_unit", 0.f, 1.f, kNormal, [](Lean x) { return log1p_unit(x); },
      [](double x) { return std::log1p(x); });
  lean("Lean log1p", 0.f, FLT_MAX, kNormal, [](Lean x) { return log1p(x); }, [](double x) { return std::log1p(x); });
  lean("Lean normal_tail", 0.f, 13.f, 0, [](Lean x) { return normal_tail(x, Lean(bell(double(x)))); }, exact_tail);
  lean(
      "Lean one_minus_exp", 0.f, FLT_MAX, kNormal, [](Lean x) { return one_minus_exp(x); },
      [](double x) { return -std::expm1(-x); });
  lean(
      "Lean sigmoid", -86.f, FLT_MAX, kNormal, [](Lean x) { return sigmoid(x); },
      [](double x) { return 1 / (1 + std::exp(-x)); });
  lean(
      "Lean softplus", -86.f, FLT_MAX, kNormal, [](Lean x) { return softplus(x); },
      [](double x) { return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))); });
  lean("Lean sqrt", 0.f, FLT_MAX, 0, [](Lean x) { return sqrt(x); }, [](double x) { return std::sqrt(x); });
  for (float n : {1e-6f, 1.f, -7.f})
    lean(
        "Lean quotient_or", 5e-38f, FLT_MAX, kNormal, [=](Lean x) { return quotient_or(Lean(3), Lean(n), x); },
        [=](double x) { return n / x; });
  lean(
      "Lean inverse_or_0", 5e-38f, FLT_MAX, kNormal, [](Lean x) { return inverse_or_0(x); },
      [](double x) { return 1 / x; });
  for (float slope : {1e-5f, 0.3f, 1.f, 3.f, -0.5f, -7.f})
    for (float sign : {1.f, -1.f})
      lean(
          "Lean atan2", 1e-30f, 1e30f, 0, [=](Lean x) { return atan2(Lean(slope) * x, Lean(sign) * x); },
          [=](double x) { return std::atan2(double(slope * float(x)), sign * x); });

  Report r("Lean, ends");
  r.same(0, float(log(Lean(0))), -kInf);
  r.same(1, float(log(Lean(1))), 0);
  r.same(kInf, float(log(Lean(kInf))), kInf);
  r.nan(-1, float(log(Lean(-1))));
  r.same(1, float(log1m(Lean(1))), -kInf);
  r.same(0, std::fabs(float(log1m(Lean(0)))), 0);
  r.same(-kInf, float(exp(Lean(-kInf))), 0);
  r.same(0, float(exp(Lean(0))), 1);
  r.same(100, float(exp(Lean(100))), kInf);
  r.same(kInf, float(one_minus_exp(Lean(kInf))), 1);
  r.same(0, float(atan2(Lean(0), Lean(0))), 0);
  for (float x : {0.f, -0.f, 4e-38f, -4e-38f}) {
    r.same(x, float(quotient_or(Lean(3), Lean(1), Lean(x))), 3);
    r.same(x, float(inverse_or_0(Lean(x))), 0);
  }
  r.same(kInf, float(inverse_or_0(Lean(kInf))), 0);
  r.same(-2, float(quotient_or(Lean(3), Lean(1), Lean(-2))), -0.5f);
  r.same(1, float(smaller(Lean(1), Lean(2))), 1);
  r.same(1, float(larger(Lean(1), Lean(2))), 2);
}
void test_lean_pow() {
  Report r("Lean pow_unit");
  for (float y : {1e-3f, 0.25f, 0.5f, 1.f, 1.5f, 2.f, 3.7f, 10.f, 100.f, 1e4f}) {
    each_short(FLT_MIN, 1.f, [&](float x) {
      double expected = std::pow(double(x), double(y));
      if (expected >= 1e-37) r.near(x, float(pow_unit(Lean(x), Lean(y))), expected, std::fmax(1e-5, y * 1e-7));
    });
    r.same(0, float(pow_unit(Lean(0), Lean(y))), 0);
    r.same(1, float(pow_unit(Lean(1), Lean(y))), 1);
    r.nan(NAN, float(pow_unit(Lean(NAN), Lean(y))));
  }
  for (float x : {0.f, 0.5f, 1.f}) r.same(x, float(pow_unit(Lean(x), Lean(0))), 1);
}

// A 16-bit format: its fields, and what they mean, straight from the definition.
struct Format {
  int exponent_bits, mantissa_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  double largest() const { return std::ldexp(2 - std::ldexp(1, -mantissa_bits), bias()); }
  double widen(uint16_t s) const {
    int exponent = (s >> mantissa_bits) & ((1 << exponent_bits) - 1), mantissa = s & ((1 << mantissa_bits) - 1);
    double magnitude;
    if (exponent == (1 << exponent_bits) - 1) magnitude = mantissa ? NAN : INFINITY;
    else if (exponent == 0) magnitude = std::ldexp(mantissa, 1 - bias() - mantissa_bits);
    else magnitude = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias() - mantissa_bits);
    return s >> 15 ? -magnitude : magnitude;
  }
  // The nearest value of the format; nearbyint rounds ties to even.
  double round(double x) const {
    if (!std::isfinite(x) || x == 0) return x;
    int exponent = std::max(std::ilogb(x), 1 - bias());
    double unit = std::ldexp(1, exponent - mantissa_bits);
    double y = std::nearbyint(x / unit) * unit;
    return std::fabs(y) > largest() ? std::copysign(INFINITY, x) : y;
  }
};

template <class S>
void test_format(const char* name, Format format) {
  Report r(name);
  auto narrow = [&](float x) { r.same(x, format.widen(Narrow<S>::from(x).bits), format.round(x)); };
  for (int s = 0; s < 65536; s++) {
    double exact = format.widen(uint16_t(s));
    r.same(s, widen<float>(S{uint16_t(s)}), exact);
    r.same(s, widen<double>(S{uint16_t(s)}), exact);
    if (!std::isfinite(exact)) continue;
    r.expect(Narrow<S>::from(exact).bits == s, exact, Narrow<S>::from(exact).bits, s);
    // the midpoint to the next value outward, a tie, and the floats on both sides of it
    double unit =
        std::ldexp(1, std::max(exact == 0 ? -10000 : std::ilogb(exact), 1 - format.bias()) - format.mantissa_bits);
    float middle = float(exact + std::copysign(unit / 2, exact));
    for (float x : {middle, std::nextafter(middle, kInf), std::nextafter(middle, -kInf)}) narrow(x);
  }
  for (float low : {-kInf, -0.f}) each_float(low, low < 0 ? -0.f : kInf, kStride, narrow);
  for (uint32_t nan : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7f80ffffu, 0x7fff8000u})
    narrow(bits<float>(nan));
}

// Words are rounded as single numbers are, whatever the processor has for it, and however many there are.
void test_words() {
  Report r("words");
  std::vector<float> low, high;
  for (uint32_t top = 0; top < 65536; top++)
    for (uint32_t rest : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) low.push_back(bits<float>(top << 16 | rest));
  // beside a denormal or a NaN are numbers that are none
  high.assign(low.rbegin(), low.rend());
  std::rotate(high.begin(), high.begin() + 12345, high.end());
  std::vector<uint16_t> got(2 * low.size() + 1, 0x1234);
  for (size_t n : {low.size(), size_t(0), size_t(1), size_t(15), size_t(16), size_t(17), size_t(31), size_t(500)})
    for (size_t from : {size_t(0), size_t(77777)}) {
      if (from + n > low.size()) continue;
      std::fill(got.begin(), got.end(), uint16_t(0x1234));
      cpu::round_words(&low[from], &high[from], cpu::words(reinterpret_cast<BFloat16*>(got.data())), int64_t(n));
      for (size_t i = 0; i < 2 * n; i++) {
        const float x = (i % 2 ? high : low)[from + i / 2];
        const float rounded = widen<float>(Narrow<BFloat16>::from(x)), y = widen<float>(BFloat16{got[i]});
        r.same(x, y, rounded);
      }
      r.same(double(n), got[2 * n], 0x1234);
    }
}

void test_sizes() {
  Report r("size_of");
  for (int d = 0; d <= int(DType::boolean); d++)
    with_storage(DType(d), [&](auto* storage) { r.same(d, size_of(DType(d)), sizeof *storage); });
}

}  // namespace
}  // namespace lossreg

int main() {
  using namespace lossreg;
  test_exp();
  test_exp_negative();
  test_exp_in_double();
  test_log();
  test_log1p_unit();
  test_one_minus_exp();
  test_pow_unit();
  test_sigmoid();
  test_softplus();
  test_log1p();
  test_normal_tail();
  test_atan2();
  test_inverse_1p_unit();
  test_lean();
  test_lean_pow();
  test_comparisons();
  test_format<Float16>("Float16", {5, 10});
  test_format<BFloat16>("BFloat16", {8, 7});
  test_words();
  test_sizes();
  return failures != 0;
}
