// special.h in float against libm in double, on dense grids over the floats. The bounds are those of its comments.
#include "base/special.h"

#include <initializer_list>

#include "report.h"

namespace lossreg {
namespace {

template <class Function, class Exact>
void test(const char* name, float low, float high, double bound, double floor, Function function, Exact exact) {
  Report r(name);
  each_float(low, high, kStride, [&](float x) { r.near(x, function(x), exact(double(x)), bound, floor); });
  r.nan(NAN, function(NAN));
}

// Below the least positive normal float a result may be anything that is as small.
constexpr double kTiny = 1e-37;

void test_pow() {
  Report r("pow");
  for (float y : {0.3f, 0.5f, 0.7f, 1.f, 1.7f, 2.f, 3.f, 4.5f, 17.f, -0.5f, -1.f, -2.f, -3.3f}) {
    each_float(-kInf, kInf, 5 * kStride, [&](float x) {
      const double expected = std::pow(double(x), double(y));
      if (expected != expected) r.nan(x, pow(x, y));
      else if (std::fabs(expected) > FLT_MAX) r.near(x, std::fabs(pow(x, y)), kInf, 2e-7);
      else r.near(x, pow(x, y), expected, 2e-7, kTiny);
    });
    r.nan(NAN, pow(NAN, y));
  }
  for (float x : {-2.f, 0.f, 0.5f, 3.f, kInf}) r.same(x, pow(x, 0.f), 1);
  for (float x : {-2.f, 0.5f, 3.f}) r.nan(x, pow(x, NAN));
  for (float y : {1.f, 2.f, 3.f, -1.f, -2.f, 0.5f}) r.near(y, std::fabs(pow(-0.f, y)), std::pow(0.0, y), 1e-9);
}

void test_lean() {
  Report r("Lean");
  const double x = 0.7;
  r.near(x, float(tanh(Lean(x))), std::tanh(x), 1e-5);
  r.near(x, float(log1p(Lean(x))), std::log1p(x), 1e-5);
  r.near(x, float(expm1(Lean(x))), std::expm1(x), 1e-5);
  r.near(x, float(erf(Lean(x))), std::erf(x), 1e-5);
  r.near(x, float(erfc(Lean(x))), std::erfc(x), 1e-5);
  r.near(x, float(pow(Lean(x), Lean(2.5))), std::pow(x, 2.5), 1e-5);
  r.near(x, float(log_cosh(Lean(x))), std::log(std::cosh(x)), 3e-5);
  r.near(x, float(exp_of_square(Lean(x))), std::exp(-x * x), 1e-5);
  r.near(x, float(sin(Lean(x))), std::sin(x), 1e-5);
  r.near(x, float(cos(Lean(x))), std::cos(x), 1e-5);
  r.near(-x, float(floor(Lean(-x))), -1, 1e-9);
}

double log_cosh_exactly(double x) {
  const double a = std::fabs(x), s = std::sinh(a);
  return a < 1 ? 0.5 * std::log1p(s * s) : a - 0.69314718055994531 + std::log1p(std::exp(-2 * a));
}

}  // namespace
}  // namespace lossreg

int main() {
  using namespace lossreg;
  test("expm1", -kInf, 88.722f, 3e-7, kTiny, [](float x) { return expm1(x); }, [](double x) { return std::expm1(x); });
  test("log1p", -1.f, FLT_MAX, 3e-7, kTiny, [](float x) { return log1p(x); }, [](double x) { return std::log1p(x); });
  test("tanh", -kInf, kInf, 5e-7, kTiny, [](float x) { return tanh(x); }, [](double x) { return std::tanh(x); });
  test("log_cosh", -1e30f, 1e30f, 1e-6, kTiny, [](float x) { return log_cosh(x); }, log_cosh_exactly);
  test(
      "exp_of_square", -9.f, 9.f, 4e-7, kTiny, [](float x) { return exp_of_square(x); },
      [](double x) { return std::exp(-x * x); });
  test("erfc", -kInf, 9.f, 8e-7, kTiny, [](float x) { return erfc(x); }, [](double x) { return std::erfc(x); });
  test("erf", -kInf, kInf, 5e-7, kTiny, [](float x) { return erf(x); }, [](double x) { return std::erf(x); });
  test("sin", -1e6f, 1e6f, 2e-7, 1, [](float x) { return sin(x); }, [](double x) { return std::sin(x); });
  test("cos", -1e6f, 1e6f, 2e-7, 1, [](float x) { return cos(x); }, [](double x) { return std::cos(x); });
  test("floor", -kInf, kInf, 1e-9, 0, [](float x) { return floor(x); }, [](double x) { return std::floor(x); });
  {
    Report r("infinities");
    r.same(-1, log1p(-1.f), -INFINITY);
    r.same(kInf, log1p(kInf), kInf);
    r.same(kInf, expm1(kInf), kInf);
    r.same(100, expm1(100.f), kInf);
    r.same(20, erfc(20.f), 0);
    for (float x : {0.5f, 1.5f, -0.5f, -1.5f, 4194304.5f, -4194304.5f, 8388607.f}) r.same(x, floor(x), std::floor(x));
  }
  test_pow();
  test_lean();
  return failures != 0;
}
