#pragma once
// Losses of detectors, whose targets are qualities, heat or places, and of many labels: all of logits.
#include "../base/log_sum_exp.h"
#include "../skeletons/groupwise/formula.h"
#include "shared/focal.h"

namespace lossreg {

// Li et al., Generalized focal loss, arXiv 2006.04388: |y - sigmoid(x)|^beta times the cross entropy.
struct QualityFocalLoss {
  static constexpr auto name = "quality_focal_loss";
  static constexpr auto args = "Tensor input, Tensor target, float beta=2.0, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  Focus focus;

  static QualityFocalLoss make(double beta, Reduction) { return {Focus::make(name, "beta", beta)}; }
  static constexpr int modes = 2;
  int mode() const { return focus.squares(); }

  template <int Mode, class T>
  HD T value(T x, T t) const {
    Logit<T> k(x);
    // sigmoid(x) - t, without a difference of two numbers near 1
    T apart = abs(k.p * (T(1) - t) - t * k.q);
    return focus.template power<Mode>(apart) * k.cross_entropy(x, t);
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    Logit<T> k(x);
    T d = k.p * (T(1) - t) - t * k.q, power = focus.template power<Mode>(abs(d));
    T slope = focus.template slope<Mode>(abs(d), power) * sign(d) * k.cross_entropy(x, t);
    return {slope * (k.p * k.q) + power * d, -slope - power * x};
  }
};

// Zhang et al., VarifocalNet, arXiv 2008.13367: y bce(x, y) where y > 0, else alpha sigmoid(x)^gamma bce(x, 0).
struct VarifocalLoss {
  static constexpr auto name = "varifocal_loss";
  static constexpr auto args = "Tensor input, Tensor target, float alpha=0.75, float gamma=2.0, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  Parameter alpha;
  Focus focus;

  static VarifocalLoss make(double alpha, double gamma, Reduction) {
    expect(alpha >= 0 && alpha < INFINITY, name, "finite alpha >= 0", alpha);
    return {alpha, Focus::make(name, "gamma", gamma)};
  }
  static constexpr int modes = 2;
  int mode() const { return focus.squares(); }

  template <int Mode, class T>
  HD T value(T x, T t) const {
    Logit<T> k(x);
    T negative = T(alpha) * focus.template power_unit<Mode>(k.p) * k.minus_log_q(x);
    return t > T(0) ? t * k.cross_entropy(x, t) : negative + t * T(0);
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    Logit<T> k(x);
    T power = focus.template power_unit<Mode>(k.p);
    // of sigmoid(x)^gamma: gamma sigmoid(x)^gamma sigmoid(-x)
    T negative = T(alpha) * power * (T(focus.gamma) * k.q * k.minus_log_q(x) + k.p);
    T positive = t * (k.p * (T(1) - t) - t * k.q);
    return {t > T(0) ? positive : negative, t > T(0) ? k.cross_entropy(x, t) - t * x : T(0)};
  }
};

// Law and Deng, CornerNet, arXiv 1808.01244: of heat maps, whose peaks are 1. With p = sigmoid(x), -(1-p)^alpha log p
// at a peak, else -(1-y)^gamma p^alpha log(1-p).
struct GaussianFocalLoss {
  static constexpr auto name = "gaussian_focal_loss";
  static constexpr auto args = "Tensor input, Tensor target, float alpha=2.0, float gamma=4.0, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  Focus focus, around;

  static GaussianFocalLoss make(double alpha, double gamma, Reduction) {
    return {Focus::make(name, "alpha", alpha), Focus::make(name, "gamma", gamma)};
  }
  // 2 and 4 are the paper's, and need no power.
  static constexpr int modes = 2;
  int mode() const { return focus.squares() && around.gamma == 4; }

  template <int Mode, class T>
  HD T power_around(T far) const {
    if constexpr (Mode == 1) return (far * far) * (far * far);
    return around.template power<false>(far);
  }
  template <int Mode, class T>
  HD T value(T x, T t) const {
    Logit<T> k(x);
    bool peak = t == T(1);
    T weight = peak ? T(1) : power_around<Mode>(T(1) - t);
    T miss = peak ? k.q : k.p, loss = peak ? k.minus_log_p(x) : k.minus_log_q(x);
    return weight * (focus.template power_unit<Mode>(miss) * loss);
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    Logit<T> k(x);
    bool peak = t == T(1);
    T far = T(1) - t, weight = peak ? T(1) : power_around<Mode>(far);
    T miss = peak ? k.q : k.p, hit = peak ? k.p : k.q, loss = peak ? k.minus_log_p(x) : k.minus_log_q(x);
    T power = focus.template power_unit<Mode>(miss);
    T growth = power * (T(focus.gamma) * hit * loss + miss);
    T slope;
    if constexpr (Mode == 1) slope = T(4) * far * far * far;
    else slope = around.template slope<false>(far, weight);
    return {weight * (peak ? -growth : growth), peak ? T(0) : -slope * (power * loss)};
  }
};

// Ridnik et al., Asymmetric loss for multi-label classification, arXiv 2009.14119. With p = sigmoid(x) and
// m = max(p - clip, 0): -y (1-p)^gamma_pos log p - (1-y) m^gamma_neg log(1-m).
struct AsymmetricLoss {
  static constexpr auto name = "asymmetric_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float gamma_neg=4.0, float gamma_pos=1.0, float clip=0.05, "
      "str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  Focus of_negatives, of_positives;
  Parameter clip;

  static AsymmetricLoss make(double gamma_neg, double gamma_pos, double clip, Reduction) {
    expect(clip >= 0 && clip < 1, name, "clip in [0, 1)", clip);
    return {Focus::make(name, "gamma_neg", gamma_neg), Focus::make(name, "gamma_pos", gamma_pos), clip};
  }
  // 4 and 1 are the paper's, and need no power.
  static constexpr int modes = 2;
  int mode() const { return of_negatives.gamma == 4 && of_positives.gamma == 1; }

  template <class T>
  struct Terms {
    T positive, positive_slope, negative, negative_slope;
  };
  template <int Mode, class T>
  HD Terms<T> terms(T x) const {
    Logit<T> k(x);
    T loss_p = k.minus_log_p(x), miss_p = Mode == 1 ? k.q : of_positives.template power_unit<false>(k.q);
    T positive = miss_p * loss_p, positive_slope = -miss_p * (T(of_positives.gamma) * k.p * loss_p + k.q);

    T c = T(clip), m = relu(k.p - c), rest = k.q + c;
#if defined(LOSSREG_ON_DEVICE)
    bool unclipped = c == T(0);
#else
    bool unclipped = rest == k.q;  // asked of each element: GCC makes no vectors where a whole loop has one answer
#endif
    // -log(1 - m): where little is left of 1, of what is left, else of m
    T loss_m = m > T(0.5) ? -log(rest) : -log1m(m > T(0.5) ? T(0) : m);
    loss_m = unclipped ? k.minus_log_q(x) : loss_m;
    T power = Mode == 1 ? (m * m) * (m * m) : of_negatives.template power_unit<false>(m);
    T slope = Mode == 1 ? T(4) * m * m * m : of_negatives.template slope<false>(m, power);
    // p q / (1 - m), whose q is all of 1 - m without a clip; the clamp at 0 has slope 1 at its bound
    T share = unclipped ? T(1) : k.q / rest;
    T negative_slope = k.p >= c ? k.p * (slope * k.q * loss_m + power * share) : T(0);
    return {positive, positive_slope, power * loss_m, negative_slope};
  }
  template <int Mode, class T>
  HD T value(T x, T t) const {
    Terms<T> k = terms<Mode>(x);
    return t * k.positive + (T(1) - t) * k.negative;
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    Terms<T> k = terms<Mode>(x);
    return {t * k.positive_slope + (T(1) - t) * k.negative_slope, k.positive - k.negative};
  }
};

// Li et al., Generalized focal loss, arXiv 2006.04388: a place y among the bins 0 ... R-1, l = min(floor(y), R-2) the
// bin to its left: (l + 1 - y) nll_l + (y - l) nll_(l+1). Differentiable in the place too.
struct DistributionFocalLoss {
  static constexpr auto name = "distribution_focal_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\"";
  static constexpr int inputs = 2, members = 1, gradients = 2, least_classes = 2;
  static constexpr Along along = Along::last;
  static constexpr Shapes shapes = Shapes::same;

  static DistributionFocalLoss make(Reduction) { return {}; }

  // The bin l, and how far y is from there to the next.
  template <class T>
  HD int place_of(T y, T bins) const {
    bool known = y >= T(0) && y <= bins - T(1);  // NaN is not
    return known ? int(at_most(y, bins - T(2))) : -1;
  }
  template <class T>
  HD T fraction(const Group<T>& g) const {
    return g.label - T(place_of(g.label, g.members));
  }

  static constexpr int sums = 3, coefficients = 4;
  static constexpr int maxima(int) { return 1; }
  template <int Mode, class T, class Place>
  HD Values<T, 1> candidates(T x, Place) const {
    return {x};
  }
  // the score of the bin to the left, and of that to the right
  template <int Mode, class T, class Place>
  HD Values<T, 3> terms(const T* max, T x, Place place) const {
    return {exp_term(x - max[0]), place == 0 ? x : T(0), place == 1 ? x : T(0)};
  }
  template <class T>
  HD void carry(const T* from, const T* to, T* sum) const {
    sum[0] *= exp_term(from[0] - to[0]);
  }
  template <class T>
  HD T value(const Group<T>& g) const {
    T w = fraction(g), left = g.sum[1] - g.max[0], right = g.sum[2] - g.max[0];
    return log_of_sum(g.sum[0], g.max[0]) - ((T(1) - w) * left + w * right);
  }
  template <int Mode, class T>
  HD Coefficients<T, 4> coefficients_of(const Group<T>& g) const {
    return {{g.max[0], inverse_of_sum(g.sum[0], g.max[0]), fraction(g), g.sum[1] - g.sum[2]}, g.members};
  }
  template <int Mode, class T, class Place>
  HD Gradients<T, 1> grad(const Coefficients<T, 4>& c, T x, Place place) const {
    T share = place == 0 ? T(1) - c.of[2] : place == 1 ? c.of[2] : T(0);
    return {exp_term(x - c.of[0]) * c.of[1] - share};
  }
};

// Su et al., ZLPR, arXiv 2208.02955: any number of the classes are positive, those whose target is above 1/2:
// log(1 + sum over them of e^-x) + log(1 + sum over the others of e^x).
struct ZLPRLoss {
  static constexpr auto name = "zlpr_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\"";
  static constexpr int inputs = 2, members = 2, gradients = 1;
  static constexpr Along along = Along::last;
  static constexpr Shapes shapes = Shapes::same;
  static constexpr unsigned typed_by = 0b01;

  static ZLPRLoss make(Reduction) { return {}; }

  static constexpr int sums = 2, coefficients = 4;
  static constexpr int maxima(int) { return 2; }
  // of the positives -x, of the others x, and of both the 0 whose exponential is the 1
  template <int Mode, class T>
  HD Values<T, 2> candidates(T x, T t) const {
    bool positive = t > T(0.5);
    return {positive ? relu(-x) : T(0), positive ? T(0) : relu(x)};
  }
  template <int Mode, class T>
  HD Values<T, 2> terms(const T* max, T x, T t) const {
    bool positive = t > T(0.5);
    T e = exp_term(positive ? -x - max[0] : x - max[1]);
    return {positive ? e : T(0), positive ? T(0) : e};
  }
  template <class T>
  HD void carry(const T* from, const T* to, T* sum) const {
    for (int k = 0; k < 2; k++) sum[k] *= exp_term(from[k] - to[k]);
  }
  // Of both: the maximum, which is not there without members, and by how much the sum of exponentials from it, that of
  // the 0 included, is more than 1.
  template <class T>
  HD static T top(const Group<T>& g, int k) {
    return at_least(g.max[k], T(0));
  }
  template <class T>
  HD static T excess(const Group<T>& g, int k) {
    return g.sum[k] - one_minus_exp(top(g, k));
  }
  template <class T>
  HD T value(const Group<T>& g) const {
    return (top(g, 0) + log1p(excess(g, 0))) + (top(g, 1) + log1p(excess(g, 1)));
  }
  template <int Mode, class T>
  HD Coefficients<T, 4> coefficients_of(const Group<T>& g) const {
    return {{top(g, 0), T(1) / (T(1) + excess(g, 0)), top(g, 1), T(1) / (T(1) + excess(g, 1))}, g.members};
  }
  template <int Mode, class T>
  HD Gradients<T, 1> grad(const Coefficients<T, 4>& c, T x, T t) const {
    bool positive = t > T(0.5);
    T e = exp_term(positive ? -x - c.of[0] : x - c.of[2]);
    return {positive ? -e * c.of[1] : e * c.of[3]};
  }
};

using Ops = Family<PointwiseOps<QualityFocalLoss, VarifocalLoss, GaussianFocalLoss, AsymmetricLoss>,
                   GroupOps<DistributionFocalLoss, ZLPRLoss>>;

}  // namespace lossreg
