// The mathematics of regions: the gradients of overlap losses in scores and soft targets, through sigmoid and softmax,
// against the dual numbers' derivative of the whole region's loss; and the order of the Lovasz losses' keys.
#include "skeletons/regionwise/formula.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "dual.h"

namespace lossreg {
namespace {

constexpr double kBound = 1e-10;
constexpr int kPixels = 3, kClasses = 4;
int failures = 0, compared = 0;

void expect_near(const char* what, int pixel, int c, double got, double expected) {
  compared++;
  if (std::fabs(got - expected) <= kBound * (1 + std::fabs(expected))) return;
  if (failures++ < 10)
    std::printf("FAILED %s of pixel %d, class %d: got %.12g, expected %.12g\n", what, pixel, c, got, expected);
}

// A region; of hard targets, y is 1 at the label and 0 elsewhere.
template <class T>
struct Region {
  T x[kPixels][kClasses], y[kPixels][kClasses];
  int label[kPixels];
};
template <class T>
Region<T> cast(const Region<double>& r) {
  Region<T> to;
  for (int i = 0; i < kPixels; i++) {
    to.label[i] = r.label[i];
    for (int c = 0; c < kClasses; c++) to.x[i][c] = T(r.x[i][c]), to.y[i][c] = T(r.y[i][c]);
  }
  return to;
}
constexpr double kWeight[kClasses] = {0.5, 1, 2, 0};

// The softmax of a pixel's scores.
template <class T>
void softmax(const T (&x)[kClasses], T (&q)[kClasses]) {
  auto lse = LogSumExp<T>::empty();
  for (T z : x) lse.add(z);
  for (int c = 0; c < kClasses; c++) q[c] = exp_negative(x[c] - lse.max) * inverse_of_sum(lse.sum, lse.max);
}

// With weights, over all classes together, as tversky_loss has it.
template <bool Softmax, bool Soft, int Mode, class T>
Overlap<T> overlap_of(const Power& power, const Region<T>& r, const Tversky& index) {
  T shared(0), of_q(0), of_y(0);
  for (int i = 0; i < kPixels; i++) {
    T q[kClasses];
    if constexpr (Softmax) softmax(r.x[i], q);
    else
      for (int c = 0; c < kClasses; c++) q[c] = sigmoid(r.x[i][c]);
    for (int c = 0; c < kClasses; c++) {
      OverlapTerms<T> terms = overlap_terms<Soft, Mode>(power, q[c], r.y[i][c]);
      shared += T(kWeight[c]) * terms.overlap;
      of_q += T(kWeight[c]) * terms.of_q;
      of_y += T(kWeight[c]) * terms.of_y;
    }
  }
  return Overlap<T>::of(shared, of_q, of_y, index);
}
template <bool Softmax, bool Soft, int Mode>
void check(const Power& power, const Region<double>& r, const Tversky& index) {
  auto o = overlap_of<Softmax, Soft, Mode>(power, r, index);
  for (int i = 0; i < kPixels; i++) {
    double q[kClasses], dot = 0;
    softmax(r.x[i], q);
    auto slope = [&](int c) { return class_slope(kWeight[c] * o.slopes.a, kWeight[c] * o.slopes.q, r.label[i] == c); };
    for (int c = 0; c < kClasses; c++) dot += q[c] * slope(c);
    for (int c = 0; c < kClasses; c++) {
      auto expected = [&](auto at) {
        auto dual = cast<Dual<double>>(r);
        at(dual)[i][c].slope = 1;
        return overlap_of<Softmax, Soft, Mode>(power, dual, index).loss.slope;
      };
      double in_score = expected([](auto& p) -> auto& { return p.x; });
      if constexpr (Softmax) {
        expect_near("gradient through softmax", i, c, softmax_slope(q[c], slope(c), dot), in_score);
      } else {
        auto found = sigmoid_overlap_slopes<Mode>(power, o.slopes.times(kWeight[c]), r.x[i][c], r.y[i][c]);
        expect_near("gradient in score", i, c, found.in_score, in_score);
        if (Soft)
          expect_near("gradient in target", i, c, found.in_target, expected([](auto& p) -> auto& { return p.y; }));
      }
    }
  }
}

// A greater error has a smaller key, an ignored pixel the greatest, and a key gives its error back.
template <class T>
void check_keys() {
  const T inf = std::numeric_limits<T>::infinity();
  const std::vector<T> errors = {inf, T(3e38), T(2), T(1), T(0.5), T(1e-30), T(0)};
  for (size_t i = 0; i < errors.size(); i++) {
    auto key = Key<T>::of(errors[i]);
    bool ordered = i == 0 || Key<T>::of(errors[i - 1]) < key;
    expect_near("key", 0, int(i), ordered && key < Key<T>::ignored && Key<T>::error(key) == errors[i], 1);
  }
  for (T nan : {T(NAN), -T(NAN)}) {
    bool first = Key<T>::of(nan) < Key<T>::of(inf) && std::isnan(Key<T>::error(Key<T>::of(nan)));
    expect_near("key of NaN", 0, 0, first, 1);
  }
}

}  // namespace
}  // namespace lossreg

int main() {
  using namespace lossreg;
  std::mt19937 random{20240607};
  auto uniform = [&](double low, double high) { return low + (high - low) * (random() / 4294967296.0); };
  for (double p : {1., 2., 1.5, 3.})
    for (double smooth : {0., 1e-5, 1.})
      for (int round = 0; round < 20; round++) {
        Region<double> soft, hard;
        for (int i = 0; i < kPixels; i++) {
          soft.label[i] = hard.label[i] = int(random() % kClasses);
          for (int c = 0; c < kClasses; c++) {
            soft.x[i][c] = hard.x[i][c] = uniform(-6, 6);
            soft.y[i][c] = uniform(0.01, 1);
            hard.y[i][c] = hard.label[i] == c;
          }
        }
        const Tversky dice = {0.5, 0.5, 0.5 * smooth};
        with_mode(Power{p}, [&](auto mode) {
          check<false, false, mode>({p}, hard, dice);
          check<false, true, mode>({p}, soft, dice);
        });
        check<true, false, 0>({}, hard, dice);
        for (double gamma : {1., 0.75, 2.}) {
          const Tversky index = {uniform(0, 2), uniform(0, 2), smooth, gamma};
          check<false, false, 0>({}, hard, index);
          check<false, true, 0>({}, soft, index);
        }
      }
  check_keys<float>();
  check_keys<double>();
  std::printf("%d compared\n", compared);
  return failures != 0;
}
