// Log-sum-exp, of numbers one by one, several at once, merged from two parts, with a bias, and by a maximum and a sum:
// against long double, against the definition at infinities and NaN, and its slopes, the softmax, by dual numbers.
#include "base/log_sum_exp.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "dual.h"

namespace lossreg {
namespace {

constexpr float kInf = INFINITY, kMost = 3.4028234e38f;
int failures = 0, compared = 0;

template <class T>
struct Parts {
  T high, low;
};
template <class T>
Parts<T> parts(LogSumExp<T> s) {
  return {s.max, log_of_sum(s.sum, s.max)};
}
template <class T, class Use>
void each_way(const std::vector<T>& z, Use use) {
  auto empty = LogSumExp<T>::empty();
  LogSumExp<T> one = empty, several = empty, left = empty, right = empty, biased = empty, passes = empty;
  size_t n = z.size(), c = 0;
  for (; c + 3 <= n; c += 3) add_exponentials<3>(several.max, several.sum, {z[c], z[c + 1], z[c + 2]});
  for (; c < n; c++) several.add(z[c]);
  for (size_t i = 0; i < n; i++) {
    one.add(z[i]);
    biased.add(z[i], T(0));
    (i % 2 ? right : left).add(z[i]);
    passes.max = greater(passes.max, z[i]);
  }
  for (size_t i = 0; i < n; i++) passes.sum += exp_negative(z[i] - passes.max);
  left.merge(right);
  left.merge(empty);
  use("one by one", parts(one));
  use("three at once", parts(several));
  use("merged", parts(left));
  use("with a bias", parts(biased));
  use("in two passes", parts(passes));
}

void fail(const std::string& what, const std::vector<double>& z, double got, double expected) {
  if (failures++ >= 10) return;
  std::printf("FAILED %s of (", what.c_str());
  for (size_t i = 0; i < z.size(); i++) std::printf(i ? ", %g" : "%g", z[i]);
  std::printf("): got %.9g, expected %.9g\n", got, expected);
}

// -log p of each number, which is what losses take of it.
template <class T>
void check(const std::vector<double>& z, double bound) {
  std::vector<T> in_type(z.begin(), z.end());
  long double max = -kInf, sum = 0;
  for (T x : in_type) max = x > max ? (long double)(x) : max;
  for (T x : in_type) sum += std::exp((long double)(x)-max);  // NaN where one is, or max is infinite
  each_way<T>(in_type, [&](const char* way, Parts<T> lse) {
    for (T x : in_type) {
      double got = lse.low + (lse.high - x), expected = T(std::log(sum) + (max - x));
      bool same = std::isnan(expected)   ? std::isnan(got)
                  : std::isinf(expected) ? got == expected
                                         : std::fabs(got - expected) <= bound * (1 + std::fabs(expected));
      if (!same) fail(way, z, got, expected);
      compared++;
    }
  });
}

void check_slopes(const std::vector<double>& z) {
  long double max = -kInf, sum = 0;
  for (double x : z) max = std::fmax(max, (long double)(x));
  for (double x : z) sum += std::exp((long double)(x)-max);
  for (size_t i = 0; i < z.size(); i++) {
    std::vector<Dual<double>> dual;
    for (double x : z) dual.emplace_back(x);
    dual[i].slope = 1;
    double expected = double(std::exp((long double)(z[i]) - max) / sum);
    each_way<Dual<double>>(dual, [&](const char* way, Parts<Dual<double>> lse) {
      double got = (lse.high + lse.low).slope;
      if (!(std::fabs(got - expected) <= 1e-13)) fail(std::string("slope, ") + way, z, got, expected);
      compared++;
    });
  }
}

}  // namespace
}  // namespace lossreg

int main() {
  using namespace lossreg;
  std::mt19937 random{20240607};
  std::normal_distribution<double> normal;
  for (double scale : {1e-3, 1., 10., 100., 1e4, 1e6})
    for (int n : {1, 2, 3, 7, 64})
      for (int round = 0; round < 20; round++) {
        std::vector<double> z;
        for (int i = 0; i < n; i++) z.push_back(float(scale * normal(random)));
        check<float>(z, 2e-6);
        check<double>(z, 1e-14);
        check_slopes(z);
      }
  // each of these in each place of a few numbers
  const double special[] = {-kInf, kInf, NAN, kMost, -kMost, 0, 1e-30, -100};
  for (double a : special) {
    check<float>({a}, 2e-6);
    for (double b : special) {
      check<float>({a, b}, 2e-6);
      for (double c : special) {
        check<float>({a, b, c, 1}, 2e-6);
        check<float>({1, a, b, c}, 2e-6);
        check<double>({a, 1, b, c}, 1e-14);
      }
    }
  }
  std::printf("%d compared\n", compared);
  return failures != 0;
}
