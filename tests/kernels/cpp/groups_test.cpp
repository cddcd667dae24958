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
  T label{1};
  int index = -1;  // of the member that the class index or the label names
};

template <int Mode, class F, class T>
Group<T> statistics(const F& f, const Problem<F, T>& problem) {
  constexpr int K = F::maxima(Mode);
  MemberBody<F, Mode> body{f};
  Group<T> g{};
  for (T& own : g.own) own = T(1);
  g.label = problem.label;
  g.members = T(kCount);
  for (int c = 0; c < kCount; c++) {
    if constexpr (K > 0) {
      T y[K];
      body.candidates(problem.x[c], c - problem.index, y);
      for (int k = 0; k < K; k++) g.max[k] = c == 0 || y[k] > g.max[k] ? y[k] : g.max[k];
    }
  }
  for (int c = 0; c < kCount; c++) {
    T y[F::sums];
    body.terms(g.max, problem.x[c], c - problem.index, y);
    for (int k = 0; k < F::sums; k++) g.sum[k] = g.sum[k] + y[k];
  }
  if constexpr (later_sums<F>() > 0) {
    auto coefficients = f.template coefficients_of<Mode>(g);
    T known[MemberBody<F, Mode>::kKnown];
    for (int k = 0; k < F::coefficients; k++) known[k] = coefficients.of[k];
    known[F::coefficients] = coefficients.members;
    for (int c = 0; c < kCount; c++) {
      T y[later_sums<F>()];
      body.later_terms(known, problem.x[c], c - problem.index, y);
      for (int k = 0; k < later_sums<F>(); k++) g.sum[F::sums + k] = g.sum[F::sums + k] + y[k];
    }
  }
  return g;
}

// Every gradient of one group; returns how many were compared.
template <int Mode, class F>
int check_group(const F& f, const Options& options, const Problem<F, double>& problem) {
  auto coefficients = f.template coefficients_of<Mode>(statistics<Mode>(f, problem));
  MemberBody<F, Mode> body{f};
  // along: where the dual numbers have their slope
  auto compare = [&](double grad, int input, int member, auto along) {
    Problem<F, Dual<double>> dual;
    dual.label = Dual<double>(problem.label, 0);
    dual.index = problem.index;
    for (int i = 0; i < kCount; i++)
      for (int j = 0; j < F::members; j++) dual.x[i][j] = Dual<double>(problem.x[i][j], 0);
    along(dual).slope = 1;
    double slope = value_of<Mode, Dual<double>>(f, statistics<Mode>(f, dual)).slope;
    if (std::fabs(grad - slope) <= kBound * (1 + std::fabs(slope))) return;
    if (failures++ < 10)
      std::printf("FAILED %s(%s): gradient in input %d of member %d: got %.12g, expected %.12g\n", F::name,
                  options.text().c_str(), input, member, grad, slope);
  };
  for (int c = 0; c < kCount; c++) {
    double grad[member_gradients<F>];
    body.grad(coefficients.of, double(kCount), problem.x[c], c - problem.index, grad);
    for (int k = 0; k < member_gradients<F>; k++)
      compare(grad[k], k, c, [&](auto& dual) -> auto& { return dual.x[c][k]; });
  }
  if constexpr (has_label_gradient<F>)
    compare(coefficients.of[F::coefficients - 1], F::members, -1, [](auto& dual) -> auto& { return dual.label; });
  return kCount * member_gradients<F> + has_label_gradient<F>;
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
        if (has_hits<F>) problem.index = g % kCount;
        if constexpr (has_places<F>) {
          problem.label = (g + 0.5) * (kCount - 1) / (kGroups * kCount);
          problem.index = f.place_of(problem.label, double(kCount));
        }
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
