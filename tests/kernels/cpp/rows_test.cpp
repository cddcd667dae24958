// The row formulas of one family: what row_coefficients and score_slope say of every score, and share_grad of every
// probability and class weight, against the dual numbers' derivative of row_loss over the whole row.
// Compiled once for each header in csrc/formulas, as formulas_test.cpp is.
#include LOSSREG_FAMILY
#include <cmath>
#include <cstdio>
#include <random>
#include <type_traits>

#include "dual.h"
#include "instances.h"

namespace lossreg {
namespace {

constexpr double kBound = 1e-9;  // roundoff of the two ways to write a derivative
constexpr int kMostClasses = 6;
constexpr int kRounds = 8;   // rows of an instance, for each number of classes and each kind of target
constexpr int kLeast = 500;  // compared, for each mode: the test can't pass by skipping
constexpr double kGrad = -1.75;
int failures = 0;

// One row and its target: a class, or none of them (ignored, or a target of probabilities).
template <class T>
struct Problem {
  int classes, target;
  bool valid;
  T x[kMostClasses], t[kMostClasses], w[kMostClasses];
  // What class c adds to the exponent, if a bias is that.
  template <class F>
  T bias(const F& f, int c) const {
    if constexpr (F::has_bias) return f.bias(w[c]);
    return T(0);
  }
};

template <class T>
struct Statistics {
  LogSum<T> lse{T(0), T(0)};
  Shares<T> shares = Shares<T>::none();
  Target<T> target;
};
// As a backend finds them: a maximum, then sums. tests/kernels/cpp/log_sum_exp_test.cpp has the other ways.
template <int Mode, class F, class T>
Statistics<T> statistics(const F& f, const Problem<T>& row) {
  Statistics<T> s;
  bool is_class = row.target >= 0;
  int at = is_class ? row.target : 0;
  s.target = {row.valid, is_class, row.x[at], f.target_logit(row.x[at]), F::has_bias || !is_class ? T(1) : row.w[at]};
  if constexpr (F::softmax) {
    LogSumExp<T> sum = LogSumExp<T>::empty();
    auto logit = [&](int c) { return c == row.target ? s.target.logit : f.logit(row.x[c]); };
    for (int c = 0; c < row.classes; c++) {
      if constexpr (F::has_bias) sum.add(logit(c), row.bias(f, c));
      else sum.add(logit(c));
    }
    s.lse = {sum.max, log_of_sum(sum.sum, sum.max)};
    for (int c = 0; c < row.classes; c++)
      s.shares.add(f.template share<Mode>(row.w[c], row.t[c], row.classes), logit(c) - sum.max);
  }
  return s;
}
template <int Mode, class F, class T>
RowLoss<T> loss_of(const F& f, const Problem<T>& row) {
  Statistics<T> s = statistics<Mode>(f, row);
  return row_loss<Mode>(f, s.lse, s.shares, s.target, row.classes);
}

template <class To, class From>
Problem<To> cast(const Problem<From>& row) {
  Problem<To> y{row.classes, row.target, row.valid, {}, {}, {}};
  for (int c = 0; c < row.classes; c++) y.x[c] = To(row.x[c]), y.t[c] = To(row.t[c]), y.w[c] = To(row.w[c]);
  return y;
}

struct Found {
  double x[kMostClasses], t[kMostClasses], w[kMostClasses];
};
// The gradient in every score, times kGrad; with probabilities, in these and in the class weights too.
template <int Mode, class F>
Found gradients(const F& f, const Problem<double>& row) {
  Found found{};
  Statistics<double> s = statistics<Mode>(f, row);
  // of the shares a backward pass knows their mass alone
  Shares<double> shares{s.shares.mass, NAN};
  auto k = row_coefficients<Mode>(f, s.lse, shares, s.target, row.classes, kGrad);
  for (int c = 0; c < row.classes; c++) {
    double u = f.template share<Mode>(row.w[c], row.t[c], row.classes);
    double d = score_slope<Mode>(f, k, s.lse, row.x[c], row.bias(f, c), u);
    found.x[c] = c == row.target ? target_score_slope(f, d, k.hit, row.x[c]) : d;
    if constexpr (Mode == F::probability_mode) {
      auto g = f.share_grad(nll_of<F>(s.lse, f.logit(row.x[c])), row.w[c], row.t[c], row.classes);
      found.t[c] = kGrad * g.of[0];
      found.w[c] = kGrad * g.of[1];
    }
  }
  return found;
}

template <class F>
struct Checker {
  int compared[F::modes] = {}, printed = 0;
  double worst = 0;

  void expect(const char* what, const Options& options, const Problem<double>& row, int c, double got, double expected,
              double bound) {
    double error = std::fabs(got - expected) / (1 + std::fabs(expected));
    if (bound == kBound && std::isfinite(error)) worst = std::fmax(worst, error);
    if (error <= bound) return;
    failures++;
    if (printed++ >= 10) return;
    std::printf("FAILED %s(%s): %s %d of %d classes, target %d: got %.12g, expected %.12g\n", F::name,
                options.text().c_str(), what, c, row.classes, row.target, got, expected);
  }

  template <int Mode, class G>
  void check_row(const G& f, const Options& options, const Problem<double>& row) {
    Found found = gradients<Mode>(f, row);
    auto slope = [&](int c, auto at) {
      Problem<Dual<double>> dual = cast<Dual<double>>(row);
      at(dual)[c].slope = 1;
      RowLoss<Dual<double>> loss = loss_of<Mode>(f, dual);
      return kGrad * loss.value.slope;
    };
    for (int c = 0; c < row.classes; c++) {
      double expected = slope(c, [](auto& p) -> auto& { return p.x; });
      if (!std::isfinite(expected)) continue;  // (1 - p)^gamma with gamma < 1 has no slope at p = 1
      expect("gradient in score", options, row, c, found.x[c], expected, kBound);
      compared[Mode]++;
      if constexpr (Mode == F::probability_mode) {
        expect("gradient in probability", options, row, c, found.t[c], slope(c, [](auto& p) -> auto& { return p.t; }),
               kBound);
        expect("gradient in weight", options, row, c, found.w[c], slope(c, [](auto& p) -> auto& { return p.w; }),
               kBound);
        compared[Mode] += 2;
      }
    }
    double in_float = loss_of<Mode>(f, cast<float>(row)).value;
    expect("loss in float", options, row, 0, in_float, loss_of<Mode>(f, row).value, 1e-4);
  }

  // An ignored row gets zeros and no NaN, whatever it holds.
  template <int Mode, class G>
  void check_ignored(const G& f, const Options& options) {
    for (double value : {double(NAN), double(INFINITY), -double(INFINITY)}) {
      Problem<double> row{2, -1, false, {value, value}, {0.5, 0.5}, {1, 1}};
      Found found = gradients<Mode>(f, row);
      RowLoss<double> loss = loss_of<Mode>(f, row);
      for (double got : {loss.value, loss.normaliser, found.x[0], found.x[1]})
        expect("ignored", options, row, 0, std::isnan(got) ? 1 : got, 0, 0);
    }
  }

  void run() {
    std::mt19937 random{20240607};
    auto uniform = [&](double low, double high) { return low + (high - low) * (random() / 4294967296.0); };
    each_instance<F>(&F::make, [&](const F& f, const Options& options) {
      with_mode_of(f, [&](auto mode) {
        constexpr bool of_classes = decltype(mode)::value != F::probability_mode;
        for (int classes : {1, 2, 5, kMostClasses})
          for (int target = of_classes ? -1 : 0; target < (of_classes ? classes : 1); target++)
            for (int round = 0; round < kRounds; round++) {
              Problem<double> row{classes, of_classes ? target : -1, !of_classes || target >= 0, {}, {}, {}};
              // a margin is made for cosines; float, so that the comparison in float has the same scores
              double most = F::has_margin ? 0.95 : round % 2 ? 3 : 30;
              for (int c = 0; c < classes; c++) {
                row.x[c] = float(uniform(-most, most));
                row.t[c] = float(uniform(0, 1));
                row.w[c] = float(uniform(0.1, 2));
              }
              with_formula(f, [&](const auto& g) { check_row<mode>(g, options, row); });
            }
        if constexpr (of_classes) with_formula(f, [&](const auto& g) { check_ignored<mode>(g, options); });
      });
    });
    for (int mode = 0; mode < F::modes; mode++) {
      if (compared[mode] < kLeast && failures++ < 10)
        std::printf("FAILED %s, mode %d: expected %d gradients at least\n", F::name, mode, kLeast);
      std::printf("%s, mode %d: %d gradients compared, worst error %.1e\n", F::name, mode, compared[mode], worst);
    }
  }

  // The mode that f is in for class indices, and that for probabilities.
  template <int Mode = 0, class Use>
  static void with_mode_of(const F& f, Use use) {
    if (f.mode(false) == Mode || (takes_probabilities<F> && f.mode(true) == Mode))
      use(std::integral_constant<int, Mode>{});
    if constexpr (Mode + 1 < F::modes) with_mode_of<Mode + 1>(f, use);
  }
};

template <class... F>
int check_all(RowOps<F...>) {
  (Checker<F>{}.run(), ...);
  return sizeof...(F);
}
template <template <class...> class List, class... F>
int check_all(List<F...>) {
  return 0;
}
template <class... Lists>
int check_all(Family<Lists...>) {
  return (check_all(Lists{}) + ... + 0);
}

}  // namespace
}  // namespace lossreg

int main() {
  if (lossreg::check_all(lossreg::Ops{}) == 0) std::printf("no row formulas\n");
  return lossreg::failures != 0;
}
