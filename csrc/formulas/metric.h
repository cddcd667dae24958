#pragma once
#include "../skeletons/groupwise/formula.h"

namespace lossreg {

// The p-norm of differences d for any p, as torch.linalg.vector_norm has it. m is the |d| that dominates, the largest
// or for p < 0 the smallest; powers are of ratios r = |d|/m or m/|d| in [0, 1], so that none overflows: norm = m (sum_d
// r^|p|)^(1/p). Its gradient is 0 where the norm is 0.
struct Norm {
  double p;
  enum { kEuclidean, kManhattan, kAny };
  static constexpr int modes = 3;
  int mode() const { return p == 2 ? kEuclidean : p == 1 ? kManhattan : kAny; }

  // what m is the maximum of, but for its sign
  template <class T>
  HD T candidate(T d) const {
    return p < 0 ? -abs(d) : abs(d);
  }
  template <int Mode, class T>
  HD T term(T d, T m) const {
    if constexpr (Mode == kEuclidean) return d * d;
    if constexpr (Mode == kManhattan) return abs(d);
    return power(abs(d), abs(m));
  }
  template <class T>
  HD T power(T d, T m) const {
    T ratio = p < 0 ? m / d : d / m;
    T r = d == m ? T(1) : ratio;  // 0 and infinity too
    // at p = 0 the differences other than 0 count, at p = +-infinity those that are m
    T counts = p == 0 ? (d == T(0) ? T(0) : T(1)) : (r == T(1) ? T(1) : T(0));
    // the error of the logarithm, multiplied by |p|, is small beside the 1 that m adds to the sum
    return p == 0 || abs(p) == INFINITY ? counts : exp(T(abs(p)) * log(r));
  }
  template <int Mode, class T>
  HD T value(T sum, T m) const {
    if constexpr (Mode == kEuclidean) return sqrt(sum);
    if constexpr (Mode == kManhattan) return sum;
    return p == 0 || sum == T(0) ? sum : abs(m) * root(sum);
  }
  // sum^(1/p) of a sum >= 1
  template <class T>
  HD T root(T sum) const {
    T inverse = pow_unit(T(1) / sum, T(1 / abs(p)));
    return p > 0 ? T(1) / inverse : inverse;
  }
  // d norm / d d = slope(d, m) * factor(sum, m)
  template <int Mode, class T>
  HD T factor(T sum, T m) const {
    T norm = value<Mode>(sum, m);
    if constexpr (Mode == kEuclidean) return norm == T(0) ? T(0) : T(1) / norm;
    if constexpr (Mode == kManhattan) return T(1);
    return p == 0 || norm == T(0) ? T(0) : root(sum) / sum;
  }
  template <int Mode, class T>
  HD T slope(T d, T m) const {
    if constexpr (Mode == kEuclidean) return d;
    if constexpr (Mode == kManhattan) return sign(d);
    T r = abs(d), up = power(r, abs(m)) * (abs(m) / r);
    return r == T(0) ? T(0) : sign(d) * up;
  }
};

// max(0, margin + d(a, p) - d(a, n)), d the p-norm of the difference plus eps; with swap d(p, n) counts in the place of
// d(a, n) where it is less.
struct TripletMarginLoss {
  static constexpr auto name = "triplet_margin_loss";
  static constexpr auto args =
      "Tensor anchor, Tensor positive, Tensor negative, float margin=1.0, float p=2.0, float eps=1e-06, "
      "bool swap=False, str reduction=\"mean\"";
  static constexpr int inputs = 3, members = 3, gradients = 3;
  static constexpr Along along = Along::last;
  static constexpr Shapes shapes = Shapes::same_rank;
  double margin, eps;
  bool swap;
  Norm norm;

  static TripletMarginLoss make(double margin, double p, double eps, bool swap, Reduction) {
    expect(margin > 0, name, "margin > 0", margin);
    expect(p == p, name, "p that is a number", p);
    expect(eps == eps, name, "eps that is a number", eps);
    return {margin, eps, swap, {p}};
  }

  static constexpr int modes = Norm::modes;
  int mode() const { return norm.mode(); }
  static constexpr int sums = 3, coefficients = 6;
  static constexpr int maxima(int mode) { return mode == Norm::kAny ? 3 : 0; }
  static constexpr bool in_words(int mode) { return mode != Norm::kAny; }

  // anchor to positive, anchor to negative, positive to negative
  template <class T>
  HD Values<T, 3> differences(T a, T p, T n) const {
    return {a - p + T(eps), a - n + T(eps), p - n + T(eps)};
  }
  template <int Mode, class T>
  HD Values<T, 3> candidates(T a, T p, T n) const {
    Values<T, 3> d = differences(a, p, n);
    return {norm.candidate(d.of[0]), norm.candidate(d.of[1]), norm.candidate(d.of[2])};
  }
  template <int Mode, class T>
  HD Values<T, 3> terms(const T* m, T a, T p, T n) const {
    Values<T, 3> d = differences(a, p, n);
    return {norm.term<Mode>(d.of[0], m[0]), norm.term<Mode>(d.of[1], m[1]), norm.term<Mode>(d.of[2], m[2])};
  }
  // torch takes a distance over the members of its two tensors, though the third has more
  template <class T>
  HD static T share(const Group<T>& g, int pair) {
    constexpr int first[] = {0, 0, 1}, second[] = {1, 2, 2};
    return g.own[first[pair]] > g.own[second[pair]] ? g.own[first[pair]] : g.own[second[pair]];
  }
  template <int Mode, class T>
  HD T distance(const Group<T>& g, int pair) const {
    return norm.value<Mode>(g.sum[pair] * share(g, pair), g.max[pair]);
  }
  template <int Mode, class T>
  HD T violation(const Group<T>& g, T an, T pn) const {
    return T(margin) + distance<Mode>(g, 0) - (swap && pn < an ? pn : an);
  }
  template <int Mode, class T>
  HD T value(const Group<T>& g) const {
    return relu(violation<Mode>(g, distance<Mode>(g, 1), distance<Mode>(g, 2)));
  }
  template <int Mode, class T>
  HD Coefficients<T, 6> coefficients_of(const Group<T>& g) const {
    T an = distance<Mode>(g, 1), pn = distance<Mode>(g, 2);
    // the kink belongs to the slope, as in torch's clamp; a tie of the two distances halves it, as in its minimum
    T active = violation<Mode>(g, an, pn) >= T(0) ? T(1) : T(0);
    T swapped = !swap || an < pn ? T(0) : (an == pn ? T(0.5) : T(1));
    T weight[3] = {active, active * (swapped - T(1)), -active * swapped};
    Coefficients<T, 6> c;
    for (int k = 0; k < 3; k++) {
      c.of[k] = weight[k] * share(g, k) * norm.factor<Mode>(g.sum[k] * share(g, k), g.max[k]);
      c.of[3 + k] = Mode == Norm::kAny ? g.max[k] : T(0);
    }
    return c;
  }
  template <int Mode, class T>
  HD Gradients<T, 3> grad(const Coefficients<T, 6>& c, T a, T p, T n) const {
    Values<T, 3> d = differences(a, p, n);
    T ap = c.of[0] * norm.slope<Mode>(d.of[0], c.of[3]);
    T an = c.of[1] * norm.slope<Mode>(d.of[1], c.of[4]);
    T pn = c.of[2] * norm.slope<Mode>(d.of[2], c.of[5]);
    return {ap + an, pn - ap, -(an + pn)};
  }
};

// log(1 + e^(d(a, p) - d(a, n))), d Euclidean; arXiv 1703.07737. The gradient of a distance is 0 where that is 0.
struct TripletSoftMarginLoss {
  static constexpr auto name = "triplet_soft_margin_loss";
  static constexpr auto args = "Tensor anchor, Tensor positive, Tensor negative, str reduction=\"mean\"";
  static constexpr int inputs = 3, members = 3, gradients = 3;
  static constexpr Along along = Along::last;
  static constexpr Shapes shapes = Shapes::same;

  static TripletSoftMarginLoss make(Reduction) { return {}; }

  static constexpr int sums = 2, coefficients = 2;
  static constexpr int maxima(int) { return 0; }
  template <int Mode, class T>
  HD Values<T, 2> terms(const T*, T a, T p, T n) const {
    return {(a - p) * (a - p), (a - n) * (a - n)};
  }
  template <class T>
  HD T value(const Group<T>& g) const {
    return softplus(sqrt(g.sum[0]) - sqrt(g.sum[1]));
  }
  template <int Mode, class T>
  HD Coefficients<T, 2> coefficients_of(const Group<T>& g) const {
    T ap = sqrt(g.sum[0]), an = sqrt(g.sum[1]), slope = sigmoid(ap - an);
    return {{ap == T(0) ? T(0) : slope / ap, an == T(0) ? T(0) : -slope / an}, g.members};
  }
  template <int Mode, class T>
  HD Gradients<T, 3> grad(const Coefficients<T, 2>& c, T a, T p, T n) const {
    T ap = c.of[0] * (a - p), an = c.of[1] * (a - n);
    return {ap + an, -ap, -an};
  }
};

// 1 - cos where y = 1, max(0, cos - margin) where y = -1, 0 elsewhere; cos = x1.x2 / (|x1| |x2|) with 1e-12 added to
// each square.
struct CosineEmbeddingLoss {
  static constexpr auto name = "cosine_embedding_loss";
  static constexpr auto args = "Tensor input1, Tensor input2, Tensor target, float margin=0.0, str reduction=\"mean\"";
  static constexpr int inputs = 3, members = 2, gradients = 2;
  static constexpr Along along = Along::last;
  static constexpr Shapes shapes = Shapes::same_rank;
  static constexpr unsigned typed_by = 0b011;
  double margin;

  static CosineEmbeddingLoss make(double margin, Reduction) {
    expect(margin == margin, name, "margin that is a number", margin);
    return {margin};
  }

  static constexpr int sums = 3, coefficients = 3;
  static constexpr int maxima(int) { return 0; }
  template <int Mode, class T>
  HD Values<T, 3> terms(const T*, T x1, T x2) const {
    return {x1 * x2, x1 * x1, x2 * x2};
  }
  // torch takes |x| before it broadcasts: one member that stands for all counts once. Its 1e-12 is a float.
  template <class T>
  HD static T length(const Group<T>& g, int k) {
    return sqrt(g.sum[1 + k] * g.own[k] + T(1e-12f));
  }
  template <class T>
  HD T value(const Group<T>& g) const {
    T cosine = g.sum[0] / (length(g, 0) * length(g, 1));
    T similar = T(1) - cosine, dissimilar = relu(cosine - T(margin));
    return g.label == T(1) ? similar : (g.label == T(-1) ? dissimilar : T(0));
  }
  template <int Mode, class T>
  HD Coefficients<T, 3> coefficients_of(const Group<T>& g) const {
    T length1 = length(g, 0), length2 = length(g, 1), both = length1 * length2, cosine = g.sum[0] / both;
    // the kink belongs to the slope, as in torch's clamp
    T active = cosine - T(margin) >= T(0) ? T(1) : T(0);
    T slope = g.label == T(1) ? T(-1) : (g.label == T(-1) ? active : T(0));
    T along1 = cosine * g.own[0] / (length1 * length1), along2 = cosine * g.own[1] / (length2 * length2);
    return {{slope / both, -slope * along1, -slope * along2}, g.members};
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(const Coefficients<T, 3>& c, T x1, T x2) const {
    return {c.of[0] * x2 + c.of[1] * x1, c.of[0] * x1 + c.of[2] * x2};
  }
};

using Ops = GroupOps<TripletMarginLoss, TripletSoftMarginLoss, CosineEmbeddingLoss>;

}  // namespace lossreg
