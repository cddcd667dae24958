#pragma once
// The pointwise skeleton: one value an element, broadcast, then reduced. Written once over a Backend.
#include "../checks.h"
#include "../formula.h"

namespace lossreg {

// Formula bodies as the backends call them: arrays in, arrays out.
template <class F, int Mode>
struct ValueBody {
  F f;
  template <class T, int I, std::size_t... K>
  HD void apply(const T (&x)[I], T (&y)[1], std::index_sequence<K...>) const {
    y[0] = value_of<Mode, T>(f, x[K]...);
  }
  template <class T, int I>
  HD void operator()(const T (&x)[I], T (&y)[1]) const {
    apply(x, y, std::make_index_sequence<I>{});
  }
};
// x[0] is the gradient of the result; y the first O gradients.
template <class F, int Mode, int O>
struct GradBody {
  F f;
  Parameter scale;
  template <class T, int I, std::size_t... K>
  HD void apply(const T (&x)[I], T (&y)[O], std::index_sequence<K...>) const {
    auto g = grad_of<Mode>(f, x[K + 1]...);
    static_assert(sizeof g.of == F::gradients * sizeof(T), "grad() returns Gradients<T, gradients>");
    T factor = x[0] * T(scale);
    for (int k = 0; k < O; k++) y[k] = factor * g.of[k];
  }
  template <class T, int I>
  HD void operator()(const T (&x)[I], T (&y)[O]) const {
    apply(x, y, std::make_index_sequence<I - 1>{});
  }
};

// What an operand is searched for: an element outside of the formula's domain, a NaN.
template <class F>
struct OutsideDomain {
  F f;
  template <class T>
  HD bool operator()(T x) const {
    return !f.in_domain(x);
  }
};
struct IsNaN {
  template <class T>
  HD bool operator()(T x) const {
    return x != x;
  }
};

// The tensors of one call, checked against each other.
template <class F>
struct PointwiseCall {
  static constexpr int I = F::inputs;
  std::vector<std::optional<Tensor>> tensors;
  std::array<DType, I> dtypes;
  std::array<Shape, I> aligned;  // the operands' shapes, as they broadcast
  Shape shape;
  DType computed, result;

  explicit PointwiseCall(std::vector<std::optional<Tensor>> inputs) : tensors(std::move(inputs)) {
    Promotion promotion, typed;
    for (int k = 0; k < I; k++) {
      dtypes[k] = DType::float32;
      if (optional(k) && !tensors[k]) continue;
      aligned[k] = shape_of(required(F::name, F::args, k, tensors[k]));
      dtypes[k] = dtype_of(F::name, ArgumentName{F::args, k}, *tensors[k], k == 0);
      expect_one_device(F::name, *tensors[0], *tensors[k]);
      promotion.add(dtypes[k], int64_t(aligned[k].size()));
      if (is_typed_by<F>(k)) typed.add(dtypes[k], int64_t(aligned[k].size()));
    }
    computed = promotion.result();
    result = typed.empty() ? computed : typed.result();
    fit();
  }

  ArgumentName name(int k) const { return {F::args, k}; }
  static bool optional(int k) {
    constexpr int required = Schema(F::args).required_tensors();
    return k >= required;
  }

  void fit() {
    if constexpr (has<declared::align, F>) F::align(aligned);
    shape = aligned[0];
    for (int k = 1; k < I; k++) {
      if (!tensors[k]) continue;
      if (optional(k) || F::shapes == Shapes::to_input) {
        if (!expands_to(aligned[k], shape)) mismatch(k, " that expands to the shape of ");
      } else if (F::shapes == Shapes::same) {
        check_same_shape(F::name, name(k), aligned[k], name(0), shape);
      } else {
        if (F::shapes == Shapes::same_rank && aligned[k].size() != aligned[0].size()) mismatch(k, " of the rank of ");
        auto joined = broadcast(shape, aligned[k]);
        if (!joined) mismatch(k, " that broadcasts with ");
        shape = *joined;
      }
    }
    element_count(F::name, shape);
  }
  [[noreturn]] void mismatch(int k, const char* relation) const {
    fail_shapes(F::name, name(k), relation, name(0), aligned[0], aligned[k]);
  }

  // Operand k over the whole index space.
  View view(int k) const {
    if (!tensors[k]) return absent_view(shape);
    View v{const_cast<void*>(tensors[k]->const_data_ptr()), dtypes[k], Shape(shape.size(), 0)};
    auto strides = tensors[k]->strides();
    size_t lead = shape.size() - aligned[k].size();
    for (size_t d = 0; d < aligned[k].size(); d++)
      if (aligned[k][d] != 1) v.strides[lead + d] = strides[d];
    return v;
  }
  // A result of the index space's shape, laid out as operand k is where that has the whole shape.
  Tensor full(int k, DType dtype) const {
    const Tensor& t = *tensors[k];
    return shape_of(t) == shape ? empty_like(t, dtype) : new_empty(t, shape, dtype);
  }
  // The gradient in operand k, from that over the index space: summed to the shape that broadcasts, without the
  // dimensions that align() added.
  Tensor summed(const Tensor& whole, int k) const {
    Tensor g = sum_to(whole, aligned[k]);
    Shape own = shape_of(*tensors[k]);
    return shape_of(g) == own ? g : torch::stable::reshape(g, own);
  }
  double normaliser(Reduction reduction) const {
    if (reduction == Reduction::mean) return 1.0 / double(element_count(F::name, shape));
    if (reduction == Reduction::batchmean && tensors[0]->dim() > 0) return 1.0 / double(tensors[0]->size(0));
    return 1.0;
  }
};

template <class F, class Backend>
struct PointwiseKernel {
  static constexpr bool keeps_state = false;
  static constexpr bool has_one_pass = takes_reduction(&F::make);
  static constexpr int I = F::inputs;

  static Tensor value(const F& f, Inputs inputs, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) {
    PointwiseCall<F> call(std::move(inputs));
    say_broadcast(call);
    typename Backend::Guard guard(*call.tensors[0]);
    DType out_dtype = result_dtype(F::name, dtype, call.result);
    bool reduced = reduction && *reduction != Reduction::none;
    Tensor out = reduced ? new_empty(*call.tensors[0], {}, out_dtype) : call.full(0, out_dtype);
    in_compute_type(call.computed, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      View views[I + 1];
      for (int k = 0; k < I; k++) views[k] = call.view(k);
      views[I] = view_of(out, out_dtype, call.shape.size() && !reduced ? call.shape : shape_of(out));
      with_mode(f, [&](auto mode) {
        ValueBody<F, mode> body{f};
        if constexpr (takes_reduction(&F::make)) {
          auto inputs_only = make_iteration<I>(F::name, call.shape, views);
          if (reduced)
            return Backend::Pointwise::template sum<T, I>(inputs_only, body, call.normaliser(*reduction), out,
                                                          out_dtype);
        }
        Backend::Pointwise::template map<T, I, 1>(make_iteration<I + 1>(F::name, call.shape, views), body);
      });
      look_at<T>(f, call, views, shape_of(out), views[I]);
    });
    return out;
  }

  // A reduced value, and the gradient in the first operand where that of the value is 1, from one read of the operands.
  static std::tuple<Tensor, Tensor> value_and_grad(const F& f, Inputs inputs, std::optional<Reduction> reduction,
                                                   std::optional<ScalarType> dtype) {
    PointwiseCall<F> call(std::move(inputs));
    say_broadcast(call);
    typename Backend::Guard guard(*call.tensors[0]);
    expect_reduced(F::name, reduction);
    DType out_dtype = result_dtype(F::name, dtype, call.result);
    Tensor out = new_empty(*call.tensors[0], {}, out_dtype);
    check_differentiable(F::name, call.name(0), call.dtypes[0]);
    Tensor grad = call.full(0, call.dtypes[0]);
    in_compute_type(call.computed, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      View views[I + 1];
      for (int k = 0; k < I; k++) views[k] = call.view(k);
      views[I] = view_of(grad, call.dtypes[0], call.shape);
      with_mode(f, [&](auto mode) {
        const double scale = call.normaliser(*reduction);
        Backend::Pointwise::template sum_and_map<T, I>(make_iteration<I + 1>(F::name, call.shape, views),
                                                       ValueBody<F, mode>{f}, GradBody<F, mode, 1>{f, scale}, scale,
                                                       out, out_dtype);
      });
      look_at<T>(f, call, views, Shape{}, view_of(out, out_dtype, Shape{}));
    });
    return {out, call.summed(grad, 0)};
  }

  static Grads<F::gradients> grad(const F& f, const Tensor& grad_output, Inputs inputs,
                                  std::optional<Reduction> reduction, const std::vector<bool>& mask) {
    PointwiseCall<F> call(std::move(inputs));
    typename Backend::Guard guard(*call.tensors[0]);
    bool reduced = reduction && *reduction != Reduction::none;
    DType grad_dtype = check_grad_output(F::name, grad_output, reduced ? Shape{} : call.shape, *call.tensors[0]);

    Grads<F::gradients> grads;
    in_compute_type(call.computed, grad_dtype, [&](auto zero) {
      using T = decltype(zero);
      bool only_first = mask[0];
      for (int k = 1; k < F::gradients; k++) only_first = only_first && !mask[k];
      with_mode(f, [&](auto mode) {
        double scale = reduced ? call.normaliser(*reduction) : 1.0;
        if (only_first) run<T, 1>(GradBody<F, mode, 1>{f, scale}, call, grad_output, grad_dtype, mask, grads);
        else
          run<T, F::gradients>(GradBody<F, mode, F::gradients>{f, scale}, call, grad_output, grad_dtype, mask, grads);
      });
    });
    return grads;
  }

 private:
  static void say_broadcast(const PointwiseCall<F>& call) {
    if constexpr (has<declared::says_broadcast, F>)
      if (call.aligned[0] != call.aligned[1])
        warn_once<F>(call.name(1), " of the shape of ", call.name(0), ", got ", shape_text(call.aligned[0]), " and ",
                     shape_text(call.aligned[1]), ", which broadcast to ", shape_text(call.shape));
  }
  template <class T, class Wanted>
  static std::optional<T> find(const Shape& shape, const View& view, Wanted wanted) {
    return Backend::Pointwise::template find<T>(make_iteration<1>(F::name, shape, &view), wanted);
  }
  // The value is NaN outside of the domain: one look at the result is enough where all is well.
  template <class T>
  static void look_at(const F& f, const PointwiseCall<F>& call, const View* operands, const Shape& shape,
                      const View& result) {
    if constexpr (has<declared::domains, F> && Backend::checks_values) {
      if (!find<T>(shape, result, IsNaN{})) return;
      int k = 0;
      for (const char* domain : F::domains)
        if (auto outside = find<T>(call.shape, operands[k++], OutsideDomain<F>{f}))
          fail(F::name, domain, ", got ", *outside);
    }
  }
  template <class T, int O, class Body>
  static void run(const Body& body, const PointwiseCall<F>& call, const Tensor& grad_output, DType grad_dtype,
                  const std::vector<bool>& mask, Grads<F::gradients>& grads) {
    View views[I + 1 + O];
    views[0] = view_of(grad_output, grad_dtype, call.shape);
    for (int k = 0; k < I; k++) views[k + 1] = call.view(k);
    for (int k = 0; k < O; k++) {
      View& v = views[I + 1 + k];
      v = absent_view(call.shape);
      if (!mask[k]) continue;
      DType dtype = call.dtypes[k];
      check_differentiable(F::name, call.name(k), dtype);
      grads[k] = call.full(k, dtype);
      v = view_of(*grads[k], dtype, call.shape);
    }
    Backend::Pointwise::template map<T, I + 1, O, Sweep::backward>(
        make_iteration<I + 1 + O>(F::name, call.shape, views), body);
    for (int k = 0; k < O; k++)
      if (grads[k]) grads[k] = call.summed(*grads[k], k);
  }
};

}  // namespace lossreg
