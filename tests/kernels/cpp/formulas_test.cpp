// The formulas of one family: grad against the dual numbers' derivative of value, float against double, and the kinks.
// Compiled once for each header in csrc/formulas, as lossreg.cpp is.
#include LOSSREG_FAMILY
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <random>

#include "box_function.h"
#include "dual.h"
#include "kinks.h"

namespace lossreg {
namespace {

constexpr double kGradBound = 1e-10;  // double: roundoff of the two ways to write a derivative
constexpr double kFloatBound = 5e-5;  // float against double
constexpr double kBoxBound =
    2e-4;  // the same for boxes: where one holds the other, the slopes of giou's U and E cancel
constexpr int kMostRounds = 5;
constexpr int kLeastPoints = 500;     // compared, for each mode and gradient: the test can't pass by skipping
constexpr int kRandomPoints = 10000;  // an instance of few inputs; boxes have eight
constexpr int kAllPoints = 300000;    // a formula of many options has many instances, which share these
constexpr double kUnderflow = 1e-30;  // below it a float may lose digits on the way
constexpr double kOverflow = 1e37;    // above it a float may be infinite
int failures = 0;

template <class F, int Mode, class T, size_t N>
T value_at(const F& f, const std::array<T, N>& x) {
  return std::apply([&](auto... each) { return value_of<Mode, T>(f, each...); }, x);
}
template <class F, int Mode, class T, size_t N>
Gradients<T, F::gradients> grad_at(const F& f, const std::array<T, N>& x) {
  return std::apply([&](auto... each) { return grad_of<Mode>(f, each...); }, x);
}
template <class To, class From, size_t N>
std::array<To, N> cast(const std::array<From, N>& x) {
  std::array<To, N> y;
  for (size_t i = 0; i < N; i++) y[i] = To(x[i]);
  return y;
}

// Makes a point one that the formula is for, where it says how; false where that can't be.
template <class F>
using arranges = decltype(F::arrange(std::declval<std::array<double, F::inputs>&>()));
template <class F, class Point>
bool arrange([[maybe_unused]] Point& x) {
  if constexpr (has<arranges, F>) return F::arrange(x);
  else return true;
}

template <class F>
struct Checker {
  static constexpr size_t N = F::inputs;
  using Point = std::array<double, N>;
  static constexpr int modes = mode_count<F>();
  static constexpr double float_bound = N < 8 ? kFloatBound : kBoxBound;

  int compared[modes][F::gradients] = {};
  int instances = 0, kinks_checked = 0, printed = 0;
  double worst_grad = 0, worst_float = 0;
  std::mt19937 random{20240607};

  // What a result changes by if x changes by its own size, or by a tenth near 0. A label is exact and does not change.
  static double effect(double x, double slope, bool may_be_label) {
    bool label = x == 0 || std::fabs(x) == 1;
    double change = std::fabs(slope) * std::fmax(std::fabs(x), 0.1);
    return (may_be_label && label) || !std::isfinite(change) ? 0 : change;
  }

  // An error counts against the result and against what the result would change by if the inputs changed by their own
  // size: so where terms cancel by the inputs' choice roundoff is excused, and where only the formula's way of writing
  // cancels (p - t at t = 1, for one) it is not. A NaN is an error of any size.
  void expect_near(const char* what, int k, double got, double expected, double sensitivity, double bound,
                   double& worst, const Options& options, const Point& x) {
    double error = std::fabs(got - expected) / (std::fabs(expected) + sensitivity + kUnderflow);
    if (bound == float_bound && std::fabs(expected) > kOverflow) return;
    if (error > worst) worst = error;
    if (error <= bound) return;
    failures++;
    if (printed++ >= 5) return;
    std::printf("FAILED %s(%s): %s", F::name, options.text().c_str(), what);
    if (k >= 0) std::printf(" of input %d", k);
    std::printf(" at (");
    for (size_t i = 0; i < N; i++) std::printf(i ? ", %.9g" : "%.9g", x[i]);
    std::printf("): got %.9g, expected %.9g, error %.2g\n", got, expected, error);
  }

  // One-sided difference quotients, where they agree: the point is inside of the domain and no kink.
  template <int Mode>
  bool smooth(const F& f, const Point& x, int k) {
    double h = 1e-6 * std::max(1.0, std::fabs(x[k]));
    Point before = x, after = x;
    before[k] -= h;
    after[k] += h;
    double here = value_at<F, Mode>(f, x);
    double left = (here - value_at<F, Mode>(f, before)) / h, right = (value_at<F, Mode>(f, after) - here) / h;
    return std::fabs(left - right) <= 1e-4 * (1 + std::fabs(left) + std::fabs(right));
  }

  template <int Mode>
  void check_point(const F& f, const Options& options, const Point& x) {
    double value = value_at<F, Mode>(f, x);
    if (!std::isfinite(value)) return;
    double slope[N], sensitivity = 0, grad_sensitivity[F::gradients] = {};
    for (size_t i = 0; i < N; i++) {
      auto dual = cast<Dual<double>>(x);
      dual[i].slope = 1;
      slope[i] = value_at<F, Mode>(f, dual).slope;
      sensitivity += effect(x[i], slope[i], false);
      auto grad = grad_at<F, Mode>(f, dual);
      for (int k = 0; k < F::gradients; k++) grad_sensitivity[k] += effect(x[i], grad.of[k].slope, i != size_t(k));
    }
    auto grad = grad_at<F, Mode>(f, x);
    auto in_float = cast<float>(x);
    auto float_grad = grad_at<F, Mode>(f, in_float);
    bool inside = false;
    for (int k = 0; k < F::gradients; k++) {
      if (excepted(F::name, options, x.data(), k) || !std::isfinite(slope[k]) || !smooth<Mode>(f, x, k)) continue;
      double scale = grad_sensitivity[k];
      expect_near("grad", k, grad.of[k], slope[k], scale, kGradBound, worst_grad, options, x);
      expect_near("float grad", k, float_grad.of[k], slope[k], scale, float_bound, worst_float, options, x);
      compared[Mode][k]++;
      inside = true;
    }
    if (!inside) return;
    double float_value = value_at<F, Mode>(f, in_float);
    expect_near("float value", -1, float_value, value, sensitivity, float_bound, worst_float, options, x);
  }

  // From one of the ranges that formulas want: probabilities, labels, positive, any, and large logits.
  double draw() {
    auto uniform = [&](double low, double high) { return low + (high - low) * (random() / 4294967296.0); };
    switch (random() % 5) {
      case 0:
        return uniform(0, 1);
      case 1:
        return int(random() % 3) - 1;
      case 2:
        return uniform(0, 8);
      case 3:
        return uniform(-4, 4);
      default:
        return uniform(-40, 40);
    }
  }

  // Finite in, finite out, at inputs that overflow where a formula is written without care.
  template <int Mode>
  void check_overflow(const F& f, const Options& options, const Point& x) {
    double value = value_at<F, Mode>(f, x);
    if (!(std::fabs(value) < kOverflow)) return;
    auto in_float = cast<float>(x);
    auto check = [&](const char* what, int k, double got, double expected) {
      if (std::isfinite(got) || !(std::fabs(expected) < kOverflow)) return;
      double unused = 0;
      expect_near(what, k, got, expected, 0, float_bound, unused, options, x);
    };
    check("float value", -1, value_at<F, Mode>(f, in_float), value);
    auto got = grad_at<F, Mode>(f, in_float), expected = grad_at<F, Mode>(f, x);
    for (int k = 0; k < F::gradients; k++) check("float grad", k, got.of[k], expected.of[k]);
  }

  template <int Mode>
  void check_instance(const F& f, const Options& options) {
    Point x;
    // at 1e4 e^x overflows in double too, and tells nothing
    constexpr double large[] = {-1e4, -100, 100, 1e4};
    for (int n = 0; n < (N < 8 ? std::min(kRandomPoints, kAllPoints / instances) : kRandomPoints / 50); n++) {
      for (double& each : x) each = float(draw());  // exact in both types
      if (arrange<F>(x)) check_point<Mode>(f, options, x);
      x[0] = large[n % 4];
      arrange<F>(x);
      check_overflow<Mode>(f, options, x);
    }
    // every combination of the numbers where formulas have their seams
    constexpr double grid[] = {-3, -1, -0.5, 0, 0.5, 1, 3.25};
    constexpr int G = sizeof grid / sizeof *grid;
    int combinations = N < 8 ? 1 : 0;
    for (size_t i = 0; i < N && combinations; i++) combinations *= G;
    for (int n = 0; n < combinations; n++) {
      for (int i = 0, rest = n; i < int(N); i++, rest /= G) x[i] = grid[rest % G];
      check_point<Mode>(f, options, x);
    }
    x.fill(0.5);
    x[0] = NAN;
    if (!std::isnan(value_at<F, Mode>(f, x)) || !std::isnan(value_at<F, Mode>(f, cast<float>(x)))) {
      failures++;
      std::printf("FAILED %s(%s): a NaN in the first input does not come out\n", F::name, options.text().c_str());
    }
  }

  template <class T>
  void check_kink(const char* what, const F& f, const Options& options, const Kink& kink) {
    Point x;
    for (size_t i = 0; i < N; i++) x[i] = kink.inputs.at(i);
    with_mode(f, [&](auto mode) {
      auto grad = grad_at<F, mode>(f, cast<T>(x));
      double unused = 0;
      for (int k = 0; k < F::gradients; k++)
        expect_near(what, k, grad.of[k], kink.gradients.at(k), 0, 1e-6, unused, options, x);
    });
  }

  // Over the modes and gradients.
  int least_compared() const {
    int least = compared[0][0];
    for (const auto& of_mode : compared)
      for (int count : of_mode) least = std::min(least, count);
    return least;
  }

  void run() {
    each_instance<F>(F::make, [&](const F&, const Options&) { instances++; });
    // a formula without options has one instance, and draws its points in several rounds
    for (int round = 0; round < kMostRounds && least_compared() < kLeastPoints; round++)
      each_instance<F>(F::make, [&](const F& f, const Options& options) {
        with_mode(f, [&](auto mode) { check_instance<mode>(f, options); });
      });
    for (const Kink& kink : kinks) {
      if (std::string(kink.op) != F::name) continue;
      auto [f, options] = instance<F>(F::make, kink.options);
      check_kink<double>("kink in double", f, options, kink);
      check_kink<float>("kink in float", f, options, kink);
      kinks_checked++;
    }
    int total = 0;
    for (int mode = 0; mode < modes; mode++)
      for (int k = 0; k < F::gradients; k++) {
        total += compared[mode][k];
        if (compared[mode][k] >= kLeastPoints) continue;
        failures++;
        std::printf("FAILED %s: mode %d, input %d: only %d points compared, expected %d\n", F::name, mode, k,
                    compared[mode][k], kLeastPoints);
      }
    std::printf("%-34s %7d gradients compared, worst error %.1e, in float %.1e; %d kinks\n", F::name, total, worst_grad,
                worst_float, kinks_checked);
  }
};

template <class F>
void with_third() {
  if constexpr (F::inputs == 3) Checker<BoxFunction<F, true>>{}.run();
}

template <class... Formulas>
int check(PointwiseOps<Formulas...>) {
  (Checker<Formulas>{}.run(), ...);
  return sizeof...(Formulas);
}
template <class... Formulas>
int check(BoxOps<Formulas...>) {
  (Checker<BoxFunction<Formulas, false>>{}.run(), ...);
  (with_third<Formulas>(), ...);
  return sizeof...(Formulas);
}
// Row and group formulas have interfaces of their own; rows_test.cpp and groups_test.cpp have those.
template <class... Formulas>
int check(RowOps<Formulas...>) {
  return 0;
}
template <class... Formulas>
int check(GroupOps<Formulas...>) {
  return 0;
}
template <class... Kinds>
int check(Family<Kinds...>) {
  return (0 + ... + check(Kinds{}));
}

}  // namespace
}  // namespace lossreg

int main() {
  if (lossreg::check(lossreg::Ops{}) == 0) std::printf("no scalar formulas\n");
  return lossreg::failures != 0;
}
