#pragma once
// Functions of floats against what they should give, and the floats on which to compare them.
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "base/math.h"

namespace lossreg {
namespace {

constexpr float kInf = INFINITY;
int failures = 0;

// Counts what it compares and prints the first few failures of a function.
struct Report {
  const char* name;
  long points = 0;
  double worst = 0, worst_at = 0;
  int printed = 0;

  explicit Report(const char* name) : name(name) {}
  ~Report() { std::printf("%-22s %9ld points, worst error %.3g at %.9g\n", name, points, worst, worst_at); }

  void expect(bool ok, double x, double got, double expected) {
    points++;
    if (ok) return;
    failures++;
    if (printed++ < 5) std::printf("FAILED %s(%.9g): got %.9g, expected %.9g\n", name, x, got, expected);
  }
  // The error relative to max(|expected|, floor) is below the bound.
  void near(double x, double got, double expected, double bound, double floor = 0) {
    double error = got == expected ? 0 : std::fabs(got - expected) / std::fmax(std::fabs(expected), floor);
    if (error > worst) worst = error, worst_at = x;
    expect(error < bound, x, got, expected);
  }
  void same(double x, double got, double expected) {
    bool both_nan = got != got && expected != expected;
    expect(both_nan || (got == expected && std::signbit(got) == std::signbit(expected)), x, got, expected);
  }
  void nan(double x, double got) { expect(got != got, x, got, NAN); }
};

// Every stride-th float of [low, high], both ends too. Floats of one sign are ordered as their bits are.
template <class Use>
void each_float(float low, float high, uint32_t stride, Use use) {
  if (low < 0) {
    uint32_t end = high < 0 ? bits<uint32_t>(high) : 0x80000000u;
    for (uint64_t b = bits<uint32_t>(low); b > end; b = b > stride ? b - stride : 0) use(bits<float>(uint32_t(b)));
  }
  if (high >= 0)
    for (uint64_t b = low > 0 ? bits<uint32_t>(low) : 0; b < bits<uint32_t>(high); b += stride)
      use(bits<float>(uint32_t(b)));
  use(low);
  use(high);
}
constexpr uint32_t kStride = 251;  // a prime: every place of the mantissa's last bits comes

}  // namespace
}  // namespace lossreg
