#pragma once
// The rowwise skeleton: one value a row of class scores, for (C) or (N, C, d1 ... dk), then reduced. Written once over
// a Backend.
#include "../checks.h"
#include "formula.h"

namespace lossreg {

// The operands of the iteration over rows. Those that have classes too step by class_stride from class to class.
enum RowOperand { kInput, kTarget, kState, kResult, kGradInput, kGradTarget, kGradWeight, kRowOperands };

struct Rows {
  Iteration<kRowOperands> it;
  int64_t classes = 0;
  int64_t class_stride[kRowOperands] = {};
  Operand weight;  // one entry a class, stride[0] from class to class; no data: 1 everywhere
  bool reduced = false, mean = false;
  bool zeroed = false;           // the gradient holds zeros already: those at the targets are all that is missing
  double* normaliser = nullptr;  // the last entry of the state

  // Rows next to each other are taken together, classes one after the other, where rows lie closer in memory than
  // classes do, and where there are so few classes that a vector would stay half empty.
  bool across_rows() const {
    if (it.dims == 0) return false;
    return it.operand[kInput].stride[0] < class_stride[kInput] || classes <= 64;
  }
};

// The tensors of one call, checked against each other.
template <class F>
struct RowCall {
  Tensor input, target;
  std::optional<Tensor> weight;   // the class tensor, one entry a class
  std::optional<Tensor> entries;  // the same as kernels read it: weights as float32 side by side, but beside float64
  DType input_dtype, target_dtype, result;
  Shape shape, row_shape;
  int64_t axis = 0, classes = 0, rows = 1;
  bool probabilities = false;

  // What is kept of each row, its log-sum-exp first, and the mean's denominator.
  int64_t state_size() const { return F::state_values * rows + 1; }

  explicit RowCall(const Inputs& inputs)
      : input(required(F::name, F::args, 0, inputs[0])), target(required(F::name, F::args, 1, inputs[1])) {
    if constexpr (F::has_bias) weight = required(F::name, F::args, 2, inputs[2]);
    else if constexpr (F::inputs > 2) weight = inputs[2];
    input_dtype = dtype_of(F::name, ArgumentName{F::args, 0}, input, true);
    target_dtype = dtype_of(F::name, ArgumentName{F::args, 1}, target, false);
    Promotion promotion;
    promotion.add(input_dtype, input.dim());
    promotion.add(target_dtype, target.dim());
    result = promotion.result();
    expect_one_device(F::name, input, target);

    shape = shape_of(input);
    if (shape.empty()) fail(F::name, name(0), " of shape (C) or (N, C, ...), got []");
    axis = shape.size() == 1 ? 0 : 1;
    classes = shape[axis];
    check_classes(F::name, name(0), shape, classes);
    row_shape = shape;
    row_shape.erase(row_shape.begin() + axis);
    element_count(F::name, shape);
    rows = element_count(F::name, row_shape);
    check_target();
    if (weight) {
      promotion.add(check_class_weight(F::name, name(2), *weight, classes, input), weight->dim());
      result = promotion.result();
      entries = weight;
      if (!F::has_bias && result != DType::float64) {
        if (weight->scalar_type() != ScalarType::Float) entries = torch::stable::to(*weight, ScalarType::Float);
        entries = torch::stable::contiguous(*entries);
      }
    }
  }

  ArgumentName name(int k) const { return {F::args, k}; }

  void check_target() {
    probabilities = takes_probabilities<F> && is_floating(target_dtype);
    Shape own = shape_of(target);
    if (probabilities) return check_same_shape(F::name, name(1), own, name(0), shape);
    check_class_indices(F::name, name(1), target_dtype);
    bool one_row = shape.size() == 1 && own == Shape{1};
    if (!one_row) check_shape(F::name, name(1), own, row_shape, name(0), shape);
  }

  void check_ignored([[maybe_unused]] const F& f) const {
    if constexpr (takes_probabilities<F>)
      expect(!probabilities || f.ignore_index < 0, F::name, "ignore_index < 0 beside class probabilities",
             f.ignore_index);
  }

  // Checks what a backward pass gets beside the inputs, and returns the dtype of grad_output.
  DType check_grad(const Tensor& grad_output, const Tensor& state, bool reduced) const {
    check_state(F::name, state, {state_size()}, DType::float64, input);
    return check_grad_output(F::name, grad_output, reduced ? Shape{} : row_shape, input);
  }

  // A tensor over the rows; the class dimension, if it has one, goes into class_stride.
  View over_rows(const Tensor& t, DType dtype, Rows& r, RowOperand k) const {
    Shape own = shape_of(t);
    View v{const_cast<void*>(t.const_data_ptr()), dtype, Shape(row_shape.size(), 0)};
    if (own == shape && (own.size() > row_shape.size())) {
      auto strides = t.strides();
      r.class_stride[k] = strides[axis];
      for (size_t d = 0, o = 0; d < own.size(); d++)
        if (int64_t(d) != axis) v.strides[o++] = strides[d];
    } else if (own == row_shape) {
      auto strides = t.strides();
      std::copy(strides.begin(), strides.end(), v.strides.begin());
    }  // else one value for all rows
    return v;
  }

  Rows problem(const Tensor& state, const Tensor* result_or_grad, const Tensor* grad_input, const Tensor* grad_target,
               const Tensor* grad_weight) const {
    Rows r;
    r.classes = classes;
    View views[kRowOperands];
    for (View& v : views) v = absent_view(row_shape);
    views[kInput] = over_rows(input, input_dtype, r, kInput);
    views[kTarget] = over_rows(target, target_dtype, r, kTarget);
    views[kState] = contiguous_view(state.mutable_data_ptr(), DType::float64, row_shape);
    r.class_stride[kState] = rows;  // from the maximum to what is added to it
    auto place = [&](RowOperand k, const Tensor* t) {
      if (t) views[k] = over_rows(*t, *known_dtype(t->scalar_type()), r, k);
    };
    place(kResult, result_or_grad);
    place(kGradInput, grad_input);
    place(kGradTarget, grad_target);
    place(kGradWeight, grad_weight);
    r.it = make_iteration<kRowOperands>(F::name, row_shape, views);
    r.normaliser = static_cast<double*>(state.mutable_data_ptr()) + state_size() - 1;
    if (entries) r.weight = operand_of(*entries);
    return r;
  }
};

template <class T, class F>
struct FindBiases {
  F f;
  Operand weight;
  T* bias;
  HD void operator()(int64_t c) const { bias[c] = f.bias(get<T>(weight, c * weight.stride[0])); }
};
// Puts the biases into the class tensor's place, for as long as the tensor lives that this returns.
template <class T, class Backend, class F>
Tensor biases(const F& f, const RowCall<F>& call, Rows& rows) {
  Tensor made = new_empty(call.input, {call.classes}, dtype_of_storage<T>);
  T* bias = static_cast<T*>(made.mutable_data_ptr());
  Backend::each(call.classes, 1, FindBiases<T, F>{f, rows.weight, bias});
  if constexpr (Backend::checks_values)
    for (int64_t c = 0; c < call.classes; c++)
      expect(bias[c] == bias[c], F::name, F::domain, get<double>(rows.weight, c * rows.weight.stride[0]));
  rows.weight = operand_of(made);
  return made;
}

template <class F, int Mode = 0, class Use>
void with_row_mode(int mode, Use use) {
  if constexpr (Mode + 1 < F::modes) {
    if (mode != Mode) return with_row_mode<F, Mode + 1>(mode, use);
  }
  use(std::integral_constant<int, Mode>{});
}
// Calls use(formula, mode) with what a call of f computes.
template <class F, class Use>
void with_row_formula(const F& f, bool probabilities, Use use) {
  with_formula(f, [&](const auto& g) {
    with_row_mode<std::decay_t<decltype(g)>>(g.mode(probabilities), [&](auto mode) { use(g, mode); });
  });
}

// The weights of the rows that count, and their number.
struct CountRows {
  Operand target, weight;
  int64_t ignore_index, classes;

  HD void operator()(int64_t i, double (&sums)[2]) const {
    const int64_t y = get<int64_t>(target, i * target.stride[0]);
    if (y == ignore_index) return;
    if (y >= 0 && y < classes) sums[0] += get<double>(weight, y * weight.stride[0]);
    sums[1] += 1;
  }
};
struct WriteMean {
  double* result;
  HD void operator()(const double (&sums)[2]) const { *result = sums[0] / sums[1]; }
};
// The mean weight of the rows that count: what a mean by weight divides by, over their number. Of one float64.
template <class Backend>
Tensor find_mean_weight(const Tensor& target, const Tensor& weight, int64_t ignore_index) {
  Tensor result = new_empty(target, {1}, DType::float64);
  Tensor flat = torch::stable::reshape(target, {target.numel()});
  const CountRows count{operand_of(flat), operand_of(weight), ignore_index, weight.size(0)};
  Backend::template total<2>(target, flat.numel(), 1, count,
                             WriteMean{static_cast<double*>(result.mutable_data_ptr())});
  return result;
}
// Where a mean divides by the rows' weights, but what a formula adds of their log-sum-exps by their number, tells it
// the ratio of both, which lives as long as the tensor that this returns.
template <class Backend, class F>
std::optional<Tensor> weigh_lse(F& f, const Tensor& target, const std::optional<Tensor>& weight, bool probabilities,
                                std::optional<Reduction> reduction) {
  if constexpr (F::uses_lse) {
    if (!f.adds_lse() || !weight || probabilities || reduction != Reduction::mean) return std::nullopt;
    Tensor made = find_mean_weight<Backend>(target, *weight, f.ignore_index);
    f.mean_weight = static_cast<const double*>(made.const_data_ptr());
    return made;
  }
  return std::nullopt;
}

template <class F, class Backend>
struct RowKernel {
  static constexpr bool keeps_state = true;
  static constexpr bool has_one_pass = F::softmax;
  static Tensor value(const F& f, const Inputs& inputs, std::optional<Reduction> reduction,
                      std::optional<ScalarType> dtype) {
    return std::get<0>(forward(f, inputs, reduction, dtype));
  }

  // Result and state. That holds a row's greatest score and the logarithm of its sum of exponentials apart: their sum
  // has no room for the second where the first is large, as in a row that is masked throughout.
  static std::tuple<Tensor, Tensor> forward(const F& f, const Inputs& inputs, std::optional<Reduction> reduction,
                                            std::optional<ScalarType> dtype) {
    RowCall<F> call(inputs);
    typename Backend::Guard guard(call.input);
    call.check_ignored(f);
    DType out_dtype = result_dtype(F::name, dtype, call.result);
    bool reduced = reduction != Reduction::none;
    Tensor out = new_empty(call.input, reduced ? Shape{} : call.row_shape, out_dtype);
    Tensor state = new_empty(call.input, {call.state_size()}, DType::float64);
    Rows rows = call.problem(state, reduced ? nullptr : &out, nullptr, nullptr, nullptr);
    rows.reduced = reduced;
    rows.mean = reduction == Reduction::mean;
    F weighed = f;
    auto mean_weight = weigh_lse<Backend>(weighed, call.target, call.weight, call.probabilities, reduction);
    in_compute_type(call.result, out_dtype, [&](auto zero) {
      std::optional<Tensor> alive;
      if constexpr (F::has_bias) alive = biases<decltype(zero), Backend>(f, call, rows);
      with_row_formula(weighed, call.probabilities, [&](const auto& g, auto mode) {
        Backend::Rows::template forward<decltype(zero), mode>(g, rows, out, out_dtype);
      });
    });
    return {out, state};
  }

  // A reduced value, and the gradient in the scores where that of the value is 1, from one read of the scores.
  static std::tuple<Tensor, Tensor> value_and_grad(const F& f, const Inputs& inputs, std::optional<Reduction> reduction,
                                                   std::optional<ScalarType> dtype) {
    RowCall<F> call(inputs);
    typename Backend::Guard guard(call.input);
    call.check_ignored(f);
    expect_reduced(F::name, reduction);
    DType out_dtype = result_dtype(F::name, dtype, call.result);
    Tensor out = new_empty(call.input, {}, out_dtype), grad = empty_like(call.input, call.input_dtype);
    Tensor state = new_empty(call.input, {call.state_size()}, DType::float64);
    Rows rows = call.problem(state, nullptr, &grad, nullptr, nullptr);
    rows.reduced = true;
    rows.mean = reduction == Reduction::mean;
    F weighed = f;
    auto mean_weight = weigh_lse<Backend>(weighed, call.target, call.weight, call.probabilities, reduction);
    in_compute_type(call.result, out_dtype, [&](auto zero) {
      std::optional<Tensor> alive;
      if constexpr (F::has_bias) alive = biases<decltype(zero), Backend>(f, call, rows);
      with_row_formula(weighed, call.probabilities, [&](const auto& g, auto mode) {
        Backend::Rows::template forward_and_grad<decltype(zero), mode>(g, rows, out, out_dtype);
      });
    });
    return {out, grad};
  }

  static Grads<F::gradients> grad(const F& f, const Tensor& grad_output, const Tensor& state, const Inputs& inputs,
                                  std::optional<Reduction> reduction, const std::vector<bool>& mask) {
    RowCall<F> call(inputs);
    typename Backend::Guard guard(call.input);
    bool reduced = reduction != Reduction::none;
    DType grad_dtype = call.check_grad(grad_output, state, reduced);

    Grads<F::gradients> grads;
    for (int k = 0; k < F::gradients; k++) {
      if (!mask[k]) continue;
      const Tensor& t = k == 0 ? call.input : k == 1 ? call.target : *call.weight;
      check_no_gradient_beside_indices(F::name, call.name(k), k > 0, !call.probabilities);
      // the class weights' gradient is written for every row, then summed over them
      grads[k] =
          k == 2 ? empty_like(call.input, compute_dtype(call.result)) : empty_like(t, *known_dtype(t.scalar_type()));
    }
    auto pointer = [&](int k) { return k < F::gradients && grads[k] ? &*grads[k] : nullptr; };
    Rows rows = call.problem(state, &grad_output, pointer(0), pointer(1), pointer(2));
    rows.reduced = reduced;
    rows.mean = reduction == Reduction::mean;
    F weighed = f;
    auto mean_weight = weigh_lse<Backend>(weighed, call.target, call.weight, call.probabilities, reduction);
    if constexpr (!F::softmax) rows.zeroed = grads[0] && !rows.across_rows() && Backend::zero(*grads[0]);
    in_compute_type(call.result, grad_dtype, [&](auto zero) {
      std::optional<Tensor> alive;
      if constexpr (F::has_bias) alive = biases<decltype(zero), Backend>(f, call, rows);
      with_row_formula(weighed, call.probabilities, [&](const auto& g, auto mode) {
        if (grads[0]) Backend::Rows::template grad<decltype(zero), mode>(g, rows);
        if constexpr (takes_probabilities<F>)
          if (pointer(1) || pointer(2)) Backend::Rows::template share_grad<decltype(zero)>(g, rows);
      });
    });
    if (Tensor* of_weight = pointer(2)) {
      Shape other;
      for (int64_t d = 0; d < int64_t(call.shape.size()); d++)
        if (d != call.axis) other.push_back(d);
      if (!other.empty()) *of_weight = torch::stable::sum(*of_weight, torch::headeronly::IntHeaderOnlyArrayRef(other));
      *of_weight = torch::stable::to(*of_weight, call.weight->scalar_type());
    }
    return grads;
  }
};

}  // namespace lossreg
