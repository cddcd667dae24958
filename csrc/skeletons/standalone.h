#pragma once
// Ops that fit no skeleton. Their kernels are written out, once for all backends, in a family of standalone/. Such an
// op is a struct with what formula.h asks for (name, args, inputs, gradients, make), and instead of value and grad
//   keeps_state     does the forward pass keep something for the backward pass? Then there is a NAME_forward
//   value<Backend>(tensors, reduction, dtype) -> Tensor
//   forward<Backend>(tensors, reduction, dtype) -> (Tensor result, Tensor state), if state is kept; then value is only
//                   there where it has less to do
//   value_and_grad<Backend>(tensors, reduction, dtype, mask) -> (Tensor, Grads), where a reduced loss has its gradients
//                   with its value for less than both cost apart
//   grad<Backend>(grad_output, [state,] tensors, reduction, mask) -> Grads: a Tensor for each true entry of mask
// as members that are const. `tensors` are the op's tensors in the order of its schema, those that are None empty;
// `reduction` is empty if make() has none, `dtype` if none was asked for. With forward_mask, forward<Backend> gets the
// needs_input_grad of NAME_forward as its last argument. A gradient is laid out as empty_like(its tensor). Where the op
// has several results, value and forward return Results<F> in the place of a Tensor, and grad gets Incoming<F>: the
// gradient of each result, empty where nobody differentiates it, but never all of them.
//
// Each of them first checks its arguments (checks.h), which may have any shape, strides and dtype. Then it sets a
// Backend::Guard, so that all that follows is on the tensors' device, makes the results (new_empty, empty_like), and
// computes them by
//   - Backend::each, teams and total: a body that runs for each of n things, by one thread, by a team of threads, or to
//     add to a sum over all of them. backend.h tells what a body has to be, and what a team can do;
//   - Backend::Pointwise, Rows and Regions: kernels of the skeletons, for a part of the op that fits one;
//   - map_tensors below: one pass over the elements of a few tensors; and call_aten: an operator of torch.
// No result may depend on the order of threads. Where Backend::checks_values is false, the host must not wait for the
// device: it reads no value there, and an argument with a bad value makes NaN instead of an error.
#include <array>

#include "checks.h"
#include "formula.h"

namespace lossreg {

// An op's results, and their gradients.
template <class F>
using Results = std::conditional_t<result_count<F>() == 1, Tensor, std::array<Tensor, size_t(result_count<F>())>>;
template <class F>
using Incoming =
    std::conditional_t<result_count<F>() == 1, Tensor, std::array<std::optional<Tensor>, size_t(result_count<F>())>>;

template <class F, class Backend, class = void>
struct WrittenKernel {
  static constexpr bool keeps_state = F::keeps_state;

  template <class Formula>
  using own_value = decltype(std::declval<Formula>().template value<Backend>(Inputs{}, std::optional<Reduction>{},
                                                                             std::optional<ScalarType>{}));

  template <class... Rest>
  static Results<F> value(const F& f, const Rest&... rest) {
    if constexpr (has<own_value, F>) return f.template value<Backend>(rest...);
    else return std::get<0>(f.template forward<Backend>(rest...));
  }
  template <class... Rest>
  static std::tuple<Results<F>, Tensor> forward(const F& f, const Rest&... rest) {
    return f.template forward<Backend>(rest...);
  }
  template <class... Rest>
  static Grads<F::gradients> grad(const F& f, const Rest&... rest) {
    return f.template grad<Backend>(rest...);
  }
};

template <class F>
using one_pass_of = decltype(&F::template value_and_grad<void>);
template <class F, class Backend>
struct WrittenKernel<F, Backend, std::enable_if_t<has<one_pass_of, F>>> : WrittenKernel<F, Backend, int> {
  static constexpr bool has_one_pass = true, one_pass_takes_mask = true;
  template <class... Rest>
  static std::tuple<Tensor, Grads<F::gradients>> value_and_grad(const F& f, const Rest&... rest) {
    return f.template value_and_grad<Backend>(rest...);
  }
};

// out = Body{}(in...), element by element, of tensors that expand to the shape of out. It is a pass of the pointwise
// skeleton, for what an op does between its calls of torch's operators.
template <class Backend, class Body, size_t I>
void map_tensors(const char* op, DType compute, const Tensor (&in)[I], const Tensor& out) {
  Shape shape = shape_of(out);
  View views[I + 1];
  for (size_t k = 0; k < I; k++) views[k] = view_of(in[k], *known_dtype(in[k].scalar_type()), shape);
  views[I] = view_of(out, *known_dtype(out.scalar_type()), shape);
  auto it = make_iteration<int(I) + 1>(op, shape, views);
  in_compute_type(compute, compute,
                  [&](auto zero) { Backend::Pointwise::template map<decltype(zero), int(I), 1>(it, Body{}); });
}
// The sum of an array of losses, one a row or a region, and what is written of it: for Backend::total.
struct AddLoss {
  const double* losses;
  HD void operator()(int64_t i, double (&sums)[1]) const { sums[0] += losses[i]; }
};
struct WriteLoss {
  Operand result;
  double scale;
  HD void operator()(const double (&sums)[1]) const { put(result, 0, sums[0] * scale); }
};
struct Add {
  template <class T>
  HD void operator()(const T (&x)[2], T (&y)[1]) const {
    y[0] = x[0] + x[1];
  }
};

}  // namespace lossreg
