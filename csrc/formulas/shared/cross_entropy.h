#pragma once
// A file of its own, because linear_cross_entropy is made of it too.
#include "../../skeletons/rowwise/formula.h"
#include "softcap.h"

namespace lossreg {

// -sum_c w_c t_c log p_c. A class index is all of t; label smoothing moves a part eps of t to all classes evenly.
struct CrossEntropy : RowFormula {
  static constexpr auto name = "cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\", "
      "float label_smoothing=0.0";
  static constexpr int inputs = 3, gradients = 3;
  double smoothing;

  static CrossEntropy make(int64_t ignore_index, Reduction, double label_smoothing) {
    check_smoothing(name, label_smoothing);
    return {{ignore_index}, label_smoothing};
  }
  static void check_smoothing(const char* op, double label_smoothing) {
    expect(label_smoothing >= 0 && label_smoothing <= 1, op, "label_smoothing in [0, 1]", label_smoothing);
  }

  enum { kIndex, kSmoothedIndex, kProbabilities };
  static constexpr int modes = 3, probability_mode = kProbabilities;
  int mode(bool probabilities) const {
    return probabilities ? kProbabilities : smoothing > 0 ? kSmoothedIndex : kIndex;
  }

  // u_c: how much of -log p_c the row's spread = sum_c u_c (-log p_c) holds
  static constexpr bool uses_shares(int mode) { return mode != kIndex; }
  template <int Mode, class T>
  HD T share(T w, T t, int64_t classes) const {
    return share<Mode>(w, t, even<T>(classes));
  }
  // The same for a kernel that asks many times: even is what smoothing gives to each class.
  template <int Mode, class T>
  HD T share(T w, T t, T even) const {
    if constexpr (Mode == kProbabilities) return w * (t * T(1 - smoothing) + even);
    return w;
  }
  template <class T>
  HD T even(int64_t classes) const {
    return T(smoothing / double(classes));
  }
  template <int Mode, class T>
  HD T value(const Row<T>& row) const {
    Slopes<T> s = slopes<Mode>(row);
    if constexpr (Mode == kIndex) return s.nll * row.nll;
    if constexpr (Mode == kProbabilities) return row.spread;
    return s.nll * row.nll + s.spread * row.spread;
  }
  template <int Mode, class T>
  HD Slopes<T> slopes(const Row<T>& row) const {
    if constexpr (Mode == kProbabilities) return {T(0), T(1)};
    if constexpr (Mode == kIndex) return {row.weight, T(0)};
    return {T(1 - smoothing) * row.weight, even<T>(row.classes)};
  }
  template <int Mode, class T>
  HD T normaliser(const Row<T>& row) const {
    return Mode == kProbabilities ? T(1) : row.weight;
  }
  // d spread / d t_c and d spread / d w_c, for class probabilities, given -log p_c
  template <class T>
  HD Gradients<T, 2> share_grad(T nll, T w, T t, int64_t classes) const {
    return {T(1 - smoothing) * w * nll, (t * T(1 - smoothing) + even<T>(classes)) * nll};
  }
};

// A row formula P where a row that counts adds z_loss lse^2, without class weight: Chowdhery et al., PaLM, arXiv
// 2204.02311.
template <class P>
struct WithZLoss : P {
  using Plain = P;
  Parameter z_loss;
  const double* mean_weight = nullptr;

  WithZLoss(const P& plain, double z_loss) : P(plain), z_loss(z_loss) {
    expect(z_loss >= 0 && z_loss < INFINITY, P::name, "a finite z_loss >= 0", z_loss);
  }
  bool adds_lse() const { return z_loss.exact > 0; }
  bool is_plain() const { return !adds_lse(); }

  static constexpr bool uses_lse = true;
  template <class T>
  HD T rate() const {
    return mean_weight ? T(z_loss.exact * *mean_weight) : T(z_loss);
  }
  template <int Mode, class T>
  HD T value(const Row<T>& row) const {
    return P::template value<Mode>(row) + rate<T>() * row.lse * row.lse;
  }
  template <int Mode, class T>
  HD Slopes<T> slopes(const Row<T>& row) const {
    Slopes<T> s = P::template slopes<Mode>(row);
    s.lse = T(2) * rate<T>() * row.lse;
    return s;
  }
};
// P with softcap(x) in the place of each score x.
template <class P>
struct WithSoftcap : P {
  using Plain = P;
  Softcap softcap;

  WithSoftcap(const P& plain, double softcap) : P(plain), softcap(Softcap::make(P::name, softcap)) {}
  bool is_plain() const { return !softcap.caps(); }

  static constexpr bool curved = true;
  template <class T>
  HD T logit(T x) const {
    return softcap.value(x);
  }
  template <class T>
  HD T target_logit(T x) const {
    return softcap.value(x);
  }
  template <class T>
  HD T logit_slope(T x) const {
    return softcap.slope(x);
  }
};
// A cross entropy with both: each costs its time where it is used.
template <class P>
using Bounded = WithSoftcap<WithZLoss<P>>;

}  // namespace lossreg
