#pragma once
// Ops whose kernels are written out, once, over a Backend: what no skeleton fits. Their families stand in standalone/,
// and make an op of a struct with what formula.h asks for (name, args, inputs, gradients, make) and
//   keeps_state                         is there a NAME_forward, and a state that NAME_backward gets?
//   value<Backend>(tensors, reduction, dtype) -> Tensor
//   forward<Backend>(tensors, reduction, dtype) -> (Tensor result, Tensor state)            where state is kept
//   grad<Backend>(grad_output, [state,] tensors, reduction, mask) -> one Tensor for each true entry of mask
// reduction is empty where make() has none. With forward_mask, forward<Backend> gets the output_mask of NAME_forward as
// its last argument. Gradients are laid out as empty_like(their tensor).
#include "checks.h"
#include "formula.h"

namespace lossreg {

template <class F, class Backend>
struct WrittenKernel {
  static constexpr bool keeps_state = F::keeps_state;

  template <class... Rest>
  static Tensor value(const F& f, const Rest&... rest) {
    return f.template value<Backend>(rest...);
  }
  template <class... Rest>
  static std::tuple<Tensor, Tensor> forward(const F& f, const Rest&... rest) {
    return f.template forward<Backend>(rest...);
  }
  template <class... Rest>
  static std::vector<Tensor> grad(const F& f, const Rest&... rest) {
    return f.template grad<Backend>(rest...);
  }
};

// out = Body{}(in...) element by element, of tensors that expand to the shape of out: a pass of the pointwise skeleton
// for what stands between an op's calls of ATen.
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
struct Add {
  template <class T>
  HD void operator()(const T (&x)[2], T (&y)[1]) const {
    y[0] = x[0] + x[1];
  }
};

}  // namespace lossreg
