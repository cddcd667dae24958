#pragma once
// Losses of the hard examples of a batch.
#include "../formula.h"
#include "../rowwise.h"
#include "../written.h"

namespace lossreg {

// The rows' part of the next: plain cross entropy.
struct OHEMRows : RowFormula {
  static constexpr auto name = "ohem_cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor target, float thresh=0.7, int n_min=-1, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr int state_values = 2;  // log-sum-exp of each row, then for each: is it kept?
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
        : kept(static_cast<double*>(state.mutable_data_ptr()) + rows), count(kept + rows) {}
  };

  // A rank for sorting: p_y, but a NaN before all others, so that it stays seen, and what is ignored after them.
  static constexpr double kFirst = -1, kLast = 2;
  template <class T>
  struct FindHard {
    const int64_t* target;
    const T* nll;
    double* kept;
    T* rank;
    int64_t ignore_index;
    T thresh;
    bool wide;  // else p_y is a float32, whatever is computed in

    HD T rounded(T p) const { return wide ? p : T(float(p)); }
    HD void operator()(int64_t i) const {
      T p = rounded(exp(-nll[i])), known = p != p ? T(kFirst) : p;
      bool valid = target[i] != ignore_index;
      rank[i] = valid ? known : T(kLast);
      kept[i] = valid && known <= rounded(thresh) ? 1.0 : 0.0;
    }
  };
  struct CountKept {
    const double* kept;
    HD void operator()(int64_t i, double (&sums)[1]) const { sums[0] += kept[i]; }
  };
  struct StoreCount {
    double* count;
    HD void operator()(const double (&sums)[1]) const { *count = sums[0]; }
  };
  template <class T>
  struct KeepSmallest {
    const int64_t* order;
    const T* rank;
    double* kept;
    const double* count;
    int64_t n_min;
    HD void operator()(int64_t k) const {
      int64_t i = order[k];
      if (*count < double(n_min) && rank[i] < T(kLast)) kept[i] = 1;
    }
  };
  template <class T>
  struct SumKept {
    const double* kept;
    const T* nll;
    HD void operator()(int64_t i, double (&sums)[2]) const {
      sums[0] += kept[i] != 0 ? double(nll[i]) : 0.0;
      sums[1] += kept[i];
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
    HD void operator()(int64_t i) const { selected[i] = kept[i] != 0 ? target[i] : ignore_index; }
  };

  static Tensor as_int64(const Tensor& target) {
    return torch::stable::contiguous(torch::stable::to(target, ScalarType::Long));
  }

  // Marks what is kept, given -log p_y of every row, in their order.
  template <class T, class Backend>
  void select(const Call& call, const Tensor& target, const Tensor& nll, Marks marks) const {
    Tensor ranks = new_empty(nll, {call.rows}, *known_dtype(nll.scalar_type()));
    auto* rank = static_cast<T*>(ranks.mutable_data_ptr());
    FindHard<T> find{static_cast<const int64_t*>(target.const_data_ptr()),
                     static_cast<const T*>(nll.const_data_ptr()),
                     marks.kept,
                     rank,
                     ignore_index,
                     T(thresh),
                     call.result == DType::float64};
    Backend::each(call.rows, 1, find);
    Backend::template total<1>(nll, call.rows, 1, CountKept{marks.kept}, StoreCount{marks.count});

    int64_t least = std::min(n_min < 0 ? call.rows / 16 : n_min, call.rows);
    // only a CPU may look; a GPU sorts, and forgets it where enough are hard
    if (least == 0 || (Backend::checks_values && *marks.count >= double(least))) return;
    auto order = call_aten<2>("aten::sort", "stable", ranks, std::optional<bool>(true), int64_t(0), false)[1];
    auto* smallest = static_cast<const int64_t*>(order.const_data_ptr());
    Backend::each(least, 1, KeepSmallest<T>{smallest, rank, marks.kept, marks.count, least});
  }

  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction> reduction,
                                     std::optional<ScalarType> dtype) const {
    Call call(inputs);
    typename Backend::Guard guard(call.input);
    DType out_dtype = dtype ? dtype_of(name, *dtype) : call.result;
    bool reduced = reduction != Reduction::none;
    Tensor out = new_empty(call.input, reduced ? Shape{} : call.row_shape, out_dtype);
    Tensor state = new_empty(call.input, {call.state_size()}, DType::float64), target = as_int64(call.target);
    Operand to;
    to.data = out.mutable_data_ptr();
    to.dtype = out_dtype;
    Marks marks(state, call.rows);
    in_compute_type(call.result, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      DType wide = sizeof(T) == 8 ? DType::float64 : DType::float32;
      Tensor nll = new_empty(call.input, call.row_shape, wide);
      Backend::template rows_forward<T, 0>(rows(), call.problem(state, &nll, nullptr, nullptr, nullptr), nll, wide);
      select<T, Backend>(call, target, nll, marks);
      auto* losses = static_cast<const T*>(nll.const_data_ptr());
      StoreLoss store{marks.count, reduced ? to : Operand{}, reduction == Reduction::mean};
      Backend::template total<2>(nll, call.rows, 1, SumKept<T>{marks.kept, losses}, store);
      if (!reduced) Backend::each(call.rows, 1, WriteKept<T>{marks.kept, losses, to});
    });
    return {out, state};
  }
  template <class Backend>
  Tensor value(const Inputs& inputs, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return std::get<0>(forward<Backend>(inputs, reduction, dtype));
  }

  template <class Backend>
  std::vector<Tensor> grad(const Tensor& grad_output, const Tensor& state, const Inputs& inputs,
                           std::optional<Reduction> reduction, const std::vector<bool>& mask) const {
    Call call(inputs);
    typename Backend::Guard guard(call.input);
    DType grad_dtype = call.check_grad(grad_output, state, reduction != Reduction::none, mask);
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
                    [&](auto zero) { Backend::template rows_grad<decltype(zero), 0>(rows(), problem); });
    return {grad_input};
  }
};

using Ops = WrittenOps<OHEMCrossEntropy>;

}  // namespace lossreg
