// The group formulas of one family: the gradient of every member against the dual numbers' derivative of the value.
// Compiled once for each header in csrc/formulas, as formulas_test.cpp is.
#include LOSSREG_FAMILY
#include <cmath>
#include <cstdio>
#include <random>

#include "dual.h"
#include "instances.h"
#include "skeletons/groupwise/formula.h"

namespace lossreg {
namespace {

constexpr double kBound = 1e-9;  // roundoff of the two ways to write a derivative
constexpr int kCount = 5;        // members of a group
constexpr int kGroups = 4;       // an instance, label or class index
int failures = 0;

// One group: its members, and what else it reads.
template <class F, class T>
struct Problem {
  T x[kCount][F::members];
  double label = 1;
  int hit = -1;
};

template <int Mode, class F, class T>
Group<T> statistics(const F& f, const Problem<F, T>& problem) {
  constexpr int K = F::maxima(Mode);
  MemberBody<F, Mode> body{f};
  Group<T> g{};
  for (T& own : g.own) own = T(1);
  g.label = T(problem.label);
  g.members = T(kCount);
  for (int c = 0; c < kCount; c++) {
    if constexpr (K > 0) {
      T y[K];
      body.candidates(problem.x[c], c == problem.hit, y);
      for (int k = 0; k < K; k++) g.max[k] = c == 0 || y[k] > g.max[k] ? y[k] : g.max[k];
    }
  }
  for (int c = 0; c < kCount; c++) {
    T y[F::sums];
    body.terms(g.max, problem.x[c], c == problem.hit, y);
    for (int k = 0; k < F::sums; k++) g.sum[k] = g.sum[k] + y[k];
  }
  return g;
}

// Every gradient of one group; returns how many were compared.
template <int Mode, class F>
int check_group(const F& f, const Options& options, const Problem<F, double>& problem) {
  auto coefficients = f.template coefficients_of<Mode>(statistics<Mode>(f, problem));
  MemberBody<F, Mode> body{f};
  for (int c = 0; c < kCount; c++) {
    double grad[F::gradients];
    body.grad(coefficients.of, double(kCount), problem.x[c], c == problem.hit, grad);
    for (int k = 0; k < F::gradients; k++) {
      Problem<F, Dual<double>> dual;
      dual.label = problem.label;
      dual.hit = problem.hit;
      for (int i = 0; i < kCount; i++)
        for (int j = 0; j < F::members; j++) dual.x[i][j] = Dual<double>(problem.x[i][j], i == c && j == k ? 1 : 0);
      double slope = value_of<Mode, Dual<double>>(f, statistics<Mode>(f, dual)).slope;
      if (std::fabs(grad[k] - slope) <= kBound * (1 + std::fabs(slope))) continue;
      if (failures++ < 10)
        std::printf("FAILED %s(%s): gradient in input %d of member %d: got %.12g, expected %.12g\n", F::name,
                    options.text().c_str(), k, c, grad[k], slope);
    }
  }
  return kCount * F::gradients;
}

template <class F>
void check() {
  std::mt19937 random{20240607};
  std::normal_distribution<double> normal(0, 2);
  int compared[mode_count<F>()] = {};
  each_instance<F>(&F::make, [&](const F& f, const Options& options) {
    with_mode(f, [&](auto mode) {
      for (int g = 0; g < kGroups * kCount; g++) {
        Problem<F, double> problem;
        for (auto& member : problem.x)
          for (double& x : member) x = normal(random);
        if (has_label<F>) problem.label = g % 3 - 1;
        if (has_hits<F>) problem.hit = g % kCount;
        compared[mode] += check_group<decltype(mode)::value>(f, options, problem);
      }
    });
  });
  for (int mode = 0; mode < mode_count<F>(); mode++) {
    if (compared[mode] == 0 && failures++ < 10) std::printf("FAILED %s: mode %d was never tried\n", F::name, mode);
    std::printf("%s, mode %d: %d gradients compared\n", F::name, mode, compared[mode]);
  }
}

template <class... F>
int check_all(GroupOps<F...>) {
  (check<F>(), ...);
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
  if (lossreg::check_all(lossreg::Ops{}) == 0) std::printf("no group formulas\n");
  return lossreg::failures != 0;
}
