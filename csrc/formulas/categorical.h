#pragma once
#include "../cross_entropy.h"

namespace lossreg {

// -w_y x_y of log-probabilities x.
struct NLLLoss {
  static constexpr auto name = "nll_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 1;
  static constexpr bool softmax = false, probabilities = false;
  int64_t ignore_index;

  static NLLLoss make(int64_t ignore_index, Reduction) { return {ignore_index}; }

  static constexpr int modes = 1;
  int mode(bool) const { return 0; }
  static constexpr bool uses_shares(int) { return false; }
  template <int Mode, class T>
  HD T share(T, T, int64_t) const {
    return T(0);
  }
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

using Ops = RowOps<NLLLoss, CrossEntropy>;

}  // namespace lossreg
