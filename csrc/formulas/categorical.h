#pragma once
#include "shared/cross_entropy.h"

namespace lossreg {

// -w_y x_y of log-probabilities x.
struct NLLLoss : RowFormula {
  static constexpr auto name = "nll_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 1;
  static constexpr bool softmax = false;
  static constexpr int state_values = 0;

  static NLLLoss make(int64_t ignore_index, Reduction) { return {{ignore_index}}; }

  template <int Mode, class T>
  HD T value(const Row<T>& row) const {
    return row.weight * row.nll;
  }
  template <int Mode, class T>
  HD Slopes<T> slopes(const Row<T>& row) const {
    return {row.weight, T(0)};
  }
  template <int Mode, class T>
  HD T normaliser(const Row<T>& row) const {
    return row.weight;
  }
};

// cross_entropy with its two options, each run only where it is not 0.
struct CrossEntropyOp : Bounded<CrossEntropy> {
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\", "
      "float label_smoothing=0.0, float softcap=0.0, float z_loss=0.0";

  static CrossEntropyOp make(int64_t ignore_index, Reduction reduction, double label_smoothing, double softcap,
                             double z_loss) {
    return {{{CrossEntropy::make(ignore_index, reduction, label_smoothing), z_loss}, softcap}};
  }
};

// -w_y (1 - p_y)^gamma log p_y: Lin et al., Focal loss for dense object detection, arXiv 1708.02002, over a softmax.
struct SoftmaxFocalLoss : RowFormula {
  static constexpr auto name = "softmax_focal_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, float gamma=2.0, int ignore_index=-100, "
      "str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 1;
  double gamma;

  static SoftmaxFocalLoss make(double gamma, int64_t ignore_index, Reduction) {
    expect(gamma >= 0 && gamma < INFINITY, name, "finite gamma >= 0", gamma);
    return {{ignore_index}, gamma};
  }

  // gamma = 2 is the paper's choice, and as 0 and 1 needs no power
  static constexpr int modes = 4;
  int mode(bool) const { return gamma == 0 ? 0 : gamma == 1 ? 1 : gamma == 2 ? 2 : 3; }
  template <int Mode, class T>
  HD T power(T miss) const {
    if constexpr (Mode == 0) return T(1);
    if constexpr (Mode == 1) return miss;
    if constexpr (Mode == 2) return miss * miss;
    return pow_unit(miss, T(gamma));
  }
  template <int Mode, class T>
  HD T value(const Row<T>& row) const {
    return row.weight * power<Mode>(one_minus_exp(row.nll)) * row.nll;
  }
  static constexpr bool slopes_of_nll = true;
  template <int Mode, class T>
  HD Slopes<T> slopes(const Row<T>& row) const {
    // with q = 1 - p: q^gamma + gamma q^(gamma-1) p nll, where nll / q goes to 1 as q goes to 0
    T q = one_minus_exp(row.nll), p = exp(-row.nll);
    T ratio = q > T(0) ? row.nll / q : T(1);
    T rising = p > T(0) ? T(gamma) * p * ratio : T(0);  // p = 0: nll may be infinite
    return {row.weight * power<Mode>(q) * (T(1) + rising), T(0)};
  }
};

// -x_y + log sum_c pi_c e^(x_c), pi the class prior: arXiv 1911.10688.
struct PCSoftmaxCrossEntropy : RowFormula {
  static constexpr auto name = "pc_softmax_cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor class_prior, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 1;
  static constexpr bool has_bias = true;
  static constexpr auto domain = "class_prior > 0";

  static PCSoftmaxCrossEntropy make(int64_t ignore_index, Reduction) { return {{ignore_index}}; }

  // NaN outside of the domain
  template <class T>
  HD T bias(T prior) const {
    return prior > T(0) ? log(prior) : T(NAN);
  }
};

// The cross entropy of class indices + epsilon w_y (1 - p_y), the first polynomial term of -log p_y weighed otherwise:
// Leng et al., PolyLoss, arXiv 2204.12511. Label smoothing is the cross entropy's alone.
struct Poly1CrossEntropy : CrossEntropy {
  static constexpr auto name = "poly1_cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, float epsilon=1.0, int ignore_index=-100, "
      "str reduction=\"mean\", float label_smoothing=0.0";
  static constexpr int gradients = 1;
  static constexpr int modes = 2, probability_mode = -1;
  double epsilon;

  static Poly1CrossEntropy make(double epsilon, int64_t ignore_index, Reduction, double label_smoothing) {
    expect(std::isfinite(epsilon), name, "a finite epsilon", epsilon);
    check_smoothing(name, label_smoothing);
    return {{{ignore_index}, label_smoothing}, epsilon};
  }

  template <int Mode, class T>
  HD T value(const Row<T>& row) const {
    return CrossEntropy::value<Mode>(row) + row.weight * (T(epsilon) * one_minus_exp(row.nll));
  }
  static constexpr bool slopes_of_nll = true;
  template <int Mode, class T>
  HD Slopes<T> slopes(const Row<T>& row) const {
    Slopes<T> s = CrossEntropy::slopes<Mode>(row);
    return {s.nll + row.weight * (T(epsilon) * exp(-row.nll)), s.spread};
  }
};

using Ops = RowOps<NLLLoss, CrossEntropyOp, SoftmaxFocalLoss, PCSoftmaxCrossEntropy, Poly1CrossEntropy>;

}  // namespace lossreg
