#pragma once
// Losses of the hard examples of a batch.
#include "../base/selection.h"
#include "../skeletons/rowwise/kernel.h"
#include "../skeletons/standalone.h"

namespace lossreg {

// The rows of ohem_cross_entropy as a row formula, which is plain cross entropy.
struct OHEMRows : RowFormula {
  static constexpr auto name = "ohem_cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor target, float thresh=0.7, int n_min=-1, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr int state_values = 3;  // log-sum-exp of each row, in two parts, then for each: is it kept?
};

// Cross entropy of the positions whose class is not probable enough, p_y <= thresh, or of the n_min least probable ones
// where those are too few: Shrivastava et al., Training region-based object detectors with online hard example mining,
// arXiv 1604.03540. The selection is made once, forward; backward, what was dropped is ignored.
struct OHEMCrossEntropy : OHEMRows {
  static constexpr bool keeps_state = true;
  double thresh;
  int64_t n_min;

  static OHEMCrossEntropy make(double thresh, int64_t n_min, int64_t ignore_index, Reduction) {
    expect(thresh >= 0 && thresh <= 1, name, "thresh in [0, 1]", thresh);
    return {{{ignore_index}}, thresh, n_min};
  }

  const OHEMRows& rows() const { return *this; }
  using Call = RowCall<OHEMRows>;

  // The state's parts.
  struct Marks {
    double *kept, *count;
    Marks(const Tensor& state, int64_t rows)
        : kept(static_cast<double*>(state.mutable_data_ptr()) + 2 * rows), count(kept + rows) {}
  };

  // What positions are ordered by: p_y, but a NaN before all others, so that it stays seen, and what is ignored last.
  // The bits of a number that is not negative order as it does.
  template <class T>
  struct Rank {
    using Key = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    static constexpr DType key_dtype = sizeof(T) == 8 ? DType::int64 : DType::int32;
    static constexpr int bits = sizeof(T) == 8 ? 62 : 30;  // of the keys up to 1 and beyond
    static constexpr Key kIgnored = (Key(1) << bits) - 1;
    const int64_t* target;
    const T* nll;
    int64_t ignore_index;
    bool wide;  // else p_y is a float32, whatever is computed in

    HD T rounded(T p) const {
      T narrow = T(float(p));
      return wide ? p : narrow;
    }
    HD T probability(int64_t i) const { return rounded(exp_negative(-nll[i])); }
    HD bool ignored(int64_t i) const { return target[i] == ignore_index; }
    HD Key key(T p) const {
      Key order = lossreg::bits<Key>(p) + 1;
      return p != p ? Key(0) : order;
    }
  };
  template <class T>
  struct FindHard {
    Rank<T> rank;
    T thresh;
    double* kept;
    typename Rank<T>::Key* key;
    HD void operator()(int64_t i) const {
      T p = rank.probability(i);
      bool ignored = rank.ignored(i), hard = !(p > thresh);
      auto own = rank.key(p);
      key[i] = ignored ? Rank<T>::kIgnored : own;
      kept[i] = !ignored && hard ? 1.0 : 0.0;
    }
  };
  template <class T>
  struct SumKept {
    const double* kept;
    const T* nll;
    HD void operator()(int64_t i, double (&sums)[2]) const {
      double loss = double(nll[i]);
      sums[0] += kept[i] != 0 ? loss : 0.0;
      sums[1] += kept[i];
    }
  };
  // The same, after what was selected is kept too.
  template <class T>
  struct KeepSelected {
    const typename Rank<T>::Key* key;
    const Selection* selection;
    double* kept;
    const T* nll;
    HD void operator()(int64_t i, double (&sums)[2]) const {
      if (key[i] != Rank<T>::kIgnored && selection->has(key[i], i)) kept[i] = 1;
      SumKept<T>{kept, nll}(i, sums);
    }
  };
  struct StoreLoss {
    double* count;
    Operand out;  // no data: not reduced
    bool mean;
    HD void operator()(const double (&sums)[2]) const {
      *count = sums[1];
      if (out.data) put(out, 0, mean ? sums[0] / sums[1] : sums[0]);
    }
  };

  template <class T>
  struct WriteKept {
    const double* kept;
    const T* nll;
    Operand out;
    HD void operator()(int64_t i) const { put(out, i, kept[i] != 0 ? nll[i] : T(0)); }
  };
  struct SelectTargets {
    const int64_t* target;
    const double* kept;
    int64_t* selected;
    int64_t ignore_index;
    HD void operator()(int64_t i) const {
      int64_t t = target[i];
      selected[i] = kept[i] != 0 ? t : ignore_index;
    }
  };

  static Tensor as_int64(const Tensor& target) {
    return torch::stable::contiguous(torch::stable::to(target, ScalarType::Long));
  }

  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction> reduction,
                                     std::optional<ScalarType> dtype) const {
    Call call(inputs);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.result);
    bool reduced = reduction != Reduction::none;
    Tensor out = new_empty(call.input, reduced ? Shape{} : call.row_shape, out_dtype);
    Tensor state = new_empty(call.input, {call.state_size()}, DType::float64), target = as_int64(call.target);
    Operand to = operand_of(out);
    Marks marks(state, call.rows);
    in_compute_type(call.result, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      constexpr DType wide = dtype_of_storage<T>;
      Tensor nll = new_empty(call.input, call.row_shape, wide);
      Backend::Rows::template forward<T, 0>(rows(), call.problem(state, &nll, nullptr, nullptr, nullptr), nll, wide);
      auto* losses = static_cast<const T*>(nll.const_data_ptr());
      Rank<T> rank{static_cast<const int64_t*>(target.const_data_ptr()), losses, ignore_index,
                   call.result == DType::float64};
      Tensor keys = new_empty(call.input, {call.rows}, rank.key_dtype);
      auto* key = static_cast<typename Rank<T>::Key*>(keys.mutable_data_ptr());
      StoreLoss store{marks.count, reduced ? to : Operand{}, reduction == Reduction::mean};
      Backend::each(call.rows, 1, FindHard<T>{rank, rank.rounded(T(thresh)), marks.kept, key});
      Backend::template total<2>(nll, call.rows, 1, SumKept<T>{marks.kept, losses}, store);
      int64_t least = std::min(n_min < 0 ? call.rows / 16 : n_min, call.rows);
      // Only a CPU may look at the count. A GPU goes on, and selects nothing where enough are hard.
      if (least > 0 && !(Backend::checks_values && *marks.count >= double(least))) {
        Tensor memory = new_empty(call.input, {int64_t(sizeof(Selection))}, DType::uint8);
        auto* selection = static_cast<Selection*>(memory.mutable_data_ptr());
        Backend::select_smallest(call.input, key, call.rows, rank.bits, least, marks.count, selection);
        Backend::template total<2>(nll, call.rows, 1, KeepSelected<T>{key, selection, marks.kept, losses}, store);
      }
      if (!reduced) Backend::each(call.rows, 1, WriteKept<T>{marks.kept, losses, to});
    });
    return {out, state};
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& inputs,
                        std::optional<Reduction> reduction, const std::vector<bool>& mask) const {
    Call call(inputs);
    typename Backend::Guard guard(call.input);
    DType grad_dtype = call.check_grad(grad_output, state, reduction != Reduction::none);
    if (!mask[0]) return {};
    Tensor target = as_int64(call.target), selected = new_empty(target, call.row_shape, DType::int64);
    Backend::each(call.rows, 1,
                  SelectTargets{static_cast<const int64_t*>(target.const_data_ptr()), Marks(state, call.rows).kept,
                                static_cast<int64_t*>(selected.mutable_data_ptr()), ignore_index});
    Call kept({call.input, selected});
    Tensor grad_input = empty_like(call.input, call.input_dtype);
    Rows problem = kept.problem(state, &grad_output, &grad_input, nullptr, nullptr);
    problem.mean = reduction == Reduction::mean;
    in_compute_type(call.result, grad_dtype,
                    [&](auto zero) { Backend::Rows::template grad<decltype(zero), 0>(rows(), problem); });
    return {grad_input};
  }
};

using Ops = WrittenOps<OHEMCrossEntropy>;

}  // namespace lossreg
