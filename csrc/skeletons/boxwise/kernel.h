#pragma once
// The skeleton of the box losses: one value for each pair of boxes, whose numbers lie along the last dimension, then
// reduced. Written once over a Backend.
#include "../checks.h"
#include "formula.h"

namespace lossreg {

// The operands of the iteration over pairs. Those that hold boxes step by coordinate[k] from a number to the next.
struct Boxes {
  enum Role { kInput, kTarget, kThird, kValue, kGradInput, kGradTarget, kRoles };
  Iteration<kRoles> it;
  int64_t coordinate[kRoles] = {};

  static constexpr bool is_box(int k) { return k != kThird && k != kValue; }
};

// The tensors of one call, checked against each other.
template <class F>
struct BoxCall {
  Inputs tensors;
  DType dtypes[F::inputs], result;
  Shape shape;  // of the pairs
  int64_t pairs = 1;

  explicit BoxCall(Inputs inputs) : tensors(std::move(inputs)) {
    Promotion promotion;
    for (int k = 0; k < F::inputs; k++) {
      if (k == 2 && !tensors[k]) continue;
      const Tensor& t = required(F::name, F::args, k, tensors[k]);
      dtypes[k] = dtype_of(F::name, name(k), t, k == 0);
      expect_one_device(F::name, *tensors[0], t);
      promotion.add(dtypes[k], t.dim());
    }
    result = promotion.result();

    shape = shape_of(input());
    constexpr int numbers = numbers_of_box<F>();
    if (shape.empty() || shape.back() != numbers)
      fail(F::name, name(0), " of shape (..., ", numbers, "), got ", shape_text(shape));
    check_same_shape(F::name, name(1), shape_of(*tensors[1]), name(0), shape);
    if (F::inputs == 3 && tensors.back() && tensors.back()->dim() != 0)
      fail(F::name, name(2), " of one number, of shape [], got ", shape_text(shape_of(*tensors.back())));
    shape.pop_back();
    pairs = element_count(F::name, shape);
  }

  ArgumentName name(int k) const { return {F::args, k}; }
  const Tensor& input() const { return *tensors[0]; }
  double normaliser(std::optional<Reduction> reduction) const {
    return reduction == Reduction::mean ? 1.0 / double(pairs) : 1.0;
  }

  // value: the result, or its gradient.
  Boxes boxes(const std::optional<Tensor>& value, const std::optional<Tensor>& grad_input = {},
              const std::optional<Tensor>& grad_target = {}) const {
    Boxes b;
    View views[Boxes::kRoles];
    for (View& v : views) v = absent_view(shape);
    auto place = [&](Boxes::Role k, const std::optional<Tensor>& t) {
      if (!t) return;
      views[k].data = const_cast<void*>(t->const_data_ptr());
      views[k].dtype = *known_dtype(t->scalar_type());
      if (t->dim() == 0 && !Boxes::is_box(k)) return;  // one number for all pairs
      auto strides = t->strides();
      for (size_t d = 0; d < shape.size(); d++) views[k].strides[d] = strides[d];
      if (Boxes::is_box(k)) b.coordinate[k] = strides[shape.size()];
    };
    place(Boxes::kInput, tensors[0]);
    place(Boxes::kTarget, tensors[1]);
    if constexpr (F::inputs == 3) place(Boxes::kThird, tensors[2]);
    place(Boxes::kValue, value);
    place(Boxes::kGradInput, grad_input);
    place(Boxes::kGradTarget, grad_target);
    b.it = make_iteration<Boxes::kRoles>(F::name, shape, views);
    return b;
  }
};

template <class F, class Backend>
struct BoxKernel {
  static constexpr bool keeps_state = false;
  static constexpr bool has_one_pass = true;

  static Tensor value(const F& f, Inputs inputs, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) {
    BoxCall<F> call(std::move(inputs));
    typename Backend::Guard guard(call.input());
    DType out_dtype = result_dtype(F::name, dtype, call.result);
    bool reduced = reduction != Reduction::none;
    Tensor out = new_empty(call.input(), reduced ? Shape{} : call.shape, out_dtype);
    Boxes boxes = call.boxes(reduced ? std::nullopt : std::optional(out));
    in_compute_type(call.result, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      with_body(f, call, [&](auto body) {
        if (reduced) Backend::Boxes::template sum<T>(boxes, body, call.normaliser(reduction), out, out_dtype);
        else Backend::Boxes::template map<T>(boxes, body);
      });
    });
    return out;
  }

  // A reduced value, and the gradient in the first boxes where that of the value is 1, from one read of the boxes.
  static std::tuple<Tensor, Tensor> value_and_grad(const F& f, Inputs inputs, std::optional<Reduction> reduction,
                                                   std::optional<ScalarType> dtype) {
    BoxCall<F> call(std::move(inputs));
    typename Backend::Guard guard(call.input());
    expect_reduced(F::name, reduction);
    DType out_dtype = result_dtype(F::name, dtype, call.result);
    check_differentiable(F::name, call.name(0), call.dtypes[0]);
    Tensor out = new_empty(call.input(), {}, out_dtype), grad = empty_like(call.input(), call.dtypes[0]);
    Boxes boxes = call.boxes(std::nullopt, grad);
    in_compute_type(call.result, out_dtype, [&](auto zero) {
      with_body(f, call, [&](auto body) {
        Backend::Boxes::template sum_and_grad<decltype(zero)>(boxes, body, call.normaliser(reduction), out, out_dtype);
      });
    });
    return {out, grad};
  }

  static Grads<F::gradients> grad(const F& f, const Tensor& grad_output, Inputs inputs,
                                  std::optional<Reduction> reduction, const std::vector<bool>& mask) {
    BoxCall<F> call(std::move(inputs));
    typename Backend::Guard guard(call.input());
    Shape expected = reduction != Reduction::none ? Shape{} : call.shape;
    DType grad_dtype = check_grad_output(F::name, grad_output, expected, call.input());

    Grads<F::gradients> grads;
    for (int k = 0; k < F::gradients; k++) {
      if (!mask[k]) continue;
      check_differentiable(F::name, call.name(k), call.dtypes[k]);
      grads[k] = empty_like(*call.tensors[k], call.dtypes[k]);
    }
    Boxes boxes = call.boxes(grad_output, grads[0], grads[1]);
    in_compute_type(call.result, grad_dtype, [&](auto zero) {
      with_body(f, call, [&](auto body) {
        Backend::Boxes::template grad<decltype(zero)>(boxes, body, call.normaliser(reduction));
      });
    });
    return grads;
  }

 private:
  template <class Use>
  static void with_body(F f, [[maybe_unused]] const BoxCall<F>& call, Use use) {
    if constexpr (F::inputs == 3) f.has_third = call.tensors[2].has_value();
    with_mode(f, [&](auto mode) { use(BoxBody<F, mode>{f}); });
  }
};

}  // namespace lossreg
