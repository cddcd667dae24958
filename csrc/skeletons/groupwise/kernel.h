#pragma once
// The groupwise skeleton: one value a group of members, then reduced. The members lie along the last dimension, or
// along the classes of (C) or (N, C, d1 ... dk); several tensors may have them. Written once over a Backend.
#include "../checks.h"
#include "formula.h"

namespace lossreg {

// The operands of the iteration over groups: the inputs, then these. Those that have members step by member_stride from
// member to member; the state by it from coefficient to coefficient.
template <class F>
struct Groups {
  static constexpr int kLabel = F::members, kResult = F::inputs, kState = kResult + 1, kGrad = kState + 1,
                       kLabelGrad = kGrad + member_gradients<F>, kOperands = kGrad + F::gradients;
  Iteration<kOperands> it;
  int64_t members = 0;
  int64_t member_stride[kOperands] = {};
  double own[kMostMembers] = {1, 1, 1};
  bool reduced = false, mean = false;
  void* valid = nullptr;  // how many groups are not ignored: the last entry of the state, where there are class indices

  // Do groups lie closer in memory than members do? `few`: so few members count as yes.
  bool across(int64_t few) const {
    for (int k = 0; k < F::members && it.dims > 0; k++) {
      int64_t group = it.operand[k].stride[0], member = member_stride[k];
      if (group != 0 && member != 0 && members > 1) return group < member || members <= few;
    }
    return it.dims > 0 && members <= few;
  }
  template <class T>
  HD Group<T> empty_group() const {
    Group<T> g{};
    for (int k = 0; k < kMostMembers; k++) g.own[k] = T(own[k]);
    g.members = T(members);
    return g;
  }
  // What the mean divides by.
  template <class T>
  HD double count() const {
    return has_hits<F> ? double(*static_cast<const T*>(valid)) : double(it.numel);
  }
};

// The tensors of one call, checked against each other.
template <class F>
struct GroupCall {
  static constexpr int I = F::inputs, M = F::members;
  std::vector<Tensor> tensors;
  std::vector<DType> dtypes;
  DType computed, result;
  Shape shape, group_shape;  // with the members and without
  int64_t axis = 0, members = 1, groups = 1;

  explicit GroupCall(const Inputs& inputs) {
    Promotion promotion, typed;
    for (int k = 0; k < I; k++) {
      tensors.push_back(required(F::name, F::args, k, inputs[k]));
      dtypes.push_back(dtype_of(F::name, name(k), tensors[k], k == 0));
      expect_one_device(F::name, tensors[0], tensors[k]);
      promotion.add(dtypes[k], tensors[k].dim());
      if (is_typed_by<F>(k)) typed.add(dtypes[k], tensors[k].dim());
    }
    computed = promotion.result();
    result = typed.empty() ? computed : typed.result();
    shape = shape_of(tensors[0]);
    if constexpr (F::along == Along::last) fit_vectors();
    else fit_classes();
    element_count(F::name, shape);
    groups = element_count(F::name, group_shape);
  }

  ArgumentName name(int k) const { return {F::args, k}; }
  [[noreturn]] void mismatch(int k, const char* relation) const {
    fail_shapes(F::name, name(k), relation, name(0), shape_of(tensors[0]), shape_of(tensors[k]));
  }

  void fit_vectors() {
    for (int k = 1; k < M; k++) {
      Shape other = shape_of(tensors[k]);
      if (F::shapes == Shapes::same && other != shape) mismatch(k, " of the shape of ");
      if (other.size() != shape.size()) mismatch(k, " of the rank of ");
      auto joined = broadcast(shape, other);
      if (!joined) mismatch(k, " that broadcasts with ");
      shape = *joined;
    }
    group_shape = shape;
    if (!shape.empty()) {
      axis = int64_t(shape.size()) - 1;
      members = shape.back();
      group_shape.pop_back();
    }  // else one member, as torch takes it
    if constexpr (has_places<F>) {
      check_classes(F::name, name(0), shape, shape.empty() ? 0 : members, F::least_classes);
      check_shape(F::name, name(M), shape_of(tensors[M]), group_shape, name(0), shape);
    } else if constexpr (has_label<F>) {
      Shape label = shape_of(tensors[M]);
      auto joined = broadcast(group_shape, label);
      if (shape.empty() || shape.size() > 2 || label.size() != group_shape.size() || !joined)
        fail(F::name, name(M), " of shape [N] for ", name(0), " of shape [N, D], or of [] for [D], got ",
             shape_text(label), " and ", shape_text(shape_of(tensors[0])));
      group_shape = *joined;
      shape = group_shape;
      shape.push_back(members);
    }
  }
  void fit_classes() {
    if (shape.empty()) fail(F::name, name(0), " of shape (C) or (N, C, ...), got []");
    for (int k = 1; k < M; k++) check_same_shape(F::name, name(k), shape_of(tensors[k]), name(0), shape);
    axis = shape.size() == 1 ? 0 : 1;
    members = shape[axis];
    group_shape = shape;
    group_shape.erase(group_shape.begin() + axis);
    check_classes(F::name, name(0), shape, members, F::least_classes);
    if constexpr (has_hits<F>) {
      check_class_indices(F::name, name(M), dtypes[M]);
      Shape indices = shape_of(tensors[M]);
      bool one_row = shape.size() == 1 && indices == Shape{1};
      if (!one_row) check_shape(F::name, name(M), indices, group_shape, name(0), shape);
    }
  }

  // Is operand k expanded to the shape of the groups? What will be summed over the expanded dimensions is not rounded
  // before.
  bool is_expanded(int k) const { return k < M && shape_of(tensors[k]) != shape; }
  Grads<F::gradients> new_gradients(const std::vector<bool>& mask) const {
    Grads<F::gradients> grads;
    for (int k = 0; k < F::gradients; k++) {
      if (!mask[k]) continue;
      check_differentiable(F::name, name(k), dtypes[k]);
      const Tensor& t = tensors[k];
      grads[k] = is_expanded(k) ? new_empty(t, shape, compute_dtype(dtypes[k])) : empty_like(t, dtypes[k]);
    }
    return grads;
  }
  void sum(Grads<F::gradients>& grads) const {
    for (int k = 0; k < F::gradients; k++) {
      if (!grads[k] || !is_expanded(k)) continue;
      Tensor own = empty_like(tensors[k], dtypes[k]);
      torch::stable::copy_(own, sum_to(*grads[k], shape_of(tensors[k])));
      grads[k] = own;
    }
  }

  // Coefficients of every group, one kind after the other; then how many groups are not ignored.
  int64_t state_size() const { return groups * F::coefficients + 1; }

  // A tensor over the groups; its step along the members goes into member_stride.
  View over_groups(const Tensor& t, DType dtype, Groups<F>& g, int k) const {
    if (k < M || (k >= Groups<F>::kGrad && k < Groups<F>::kLabelGrad)) {
      View v = view_of(t, dtype, shape);
      if (shape.empty()) return v;
      g.member_stride[k] = v.strides[axis];
      v.strides.erase(v.strides.begin() + axis);
      return v;
    }
    // a target of shape [1] belongs to the one row of [C]
    if (t.dim() > int64_t(group_shape.size())) return {const_cast<void*>(t.const_data_ptr()), dtype, {}};
    return view_of(t, dtype, group_shape);
  }

  Groups<F> problem(const Tensor* result_or_grad, const Tensor* state, const std::optional<Tensor>* grads,
                    std::optional<Reduction> reduction) const {
    using G = Groups<F>;
    G g;
    g.members = members;
    g.reduced = reduction != Reduction::none;
    g.mean = reduction == Reduction::mean;
    View views[G::kOperands];
    for (View& v : views) v = absent_view(group_shape);
    auto place = [&](int k, const Tensor& t) { views[k] = over_groups(t, *known_dtype(t.scalar_type()), g, k); };
    for (int k = 0; k < I; k++) place(k, tensors[k]);
    for (int k = 0; k < M; k++)
      if (!shape.empty() && tensors[k].size(tensors[k].dim() - 1) == 1 && members > 0 && F::along == Along::last)
        g.own[k] = 1.0 / double(members);
    if (result_or_grad) place(G::kResult, *result_or_grad);
    for (int k = 0; k < F::gradients; k++)
      if (grads && grads[k]) place(G::kGrad + k, *grads[k]);
    if (state) {
      DType dtype = *known_dtype(state->scalar_type());
      views[G::kState] = contiguous_view(state->mutable_data_ptr(), dtype, group_shape);
      g.member_stride[G::kState] = groups;
      g.valid = static_cast<char*>(state->mutable_data_ptr()) + (state_size() - 1) * size_of(dtype);
    }
    g.it = make_iteration<G::kOperands>(F::name, group_shape, views);
    return g;
  }
};

template <class F, class Backend>
struct GroupKernel {
  static constexpr bool keeps_state = true;
  static constexpr bool has_one_pass = true, one_pass_takes_mask = true;

  static Tensor value(const F& f, const Inputs& inputs, std::optional<Reduction> reduction,
                      std::optional<ScalarType> dtype) {
    std::optional<Tensor> no_state;
    return run(f, inputs, reduction, dtype, false, no_state);
  }
  // Result and state, of the type that is computed in.
  static std::tuple<Tensor, Tensor> forward(const F& f, const Inputs& inputs, std::optional<Reduction> reduction,
                                            std::optional<ScalarType> dtype) {
    std::optional<Tensor> state;
    Tensor out = run(f, inputs, reduction, dtype, true, state);
    return {out, *state};
  }

  // A reduced value, and the gradients where that of the value is 1, from one read of the members.
  static std::tuple<Tensor, Grads<F::gradients>> value_and_grad(const F& f, const Inputs& inputs,
                                                                std::optional<Reduction> reduction,
                                                                std::optional<ScalarType> dtype,
                                                                const std::vector<bool>& mask) {
    GroupCall<F> call(inputs);
    typename Backend::Guard guard(call.tensors[0]);
    expect_reduced(F::name, reduction);
    DType out_dtype = result_dtype(F::name, dtype, call.result);
    Tensor out = new_empty(call.tensors[0], {}, out_dtype);
    Grads<F::gradients> grads = call.new_gradients(mask);
    in_compute_type(call.computed, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      auto groups = call.problem(nullptr, nullptr, grads.data(), reduction);
      with_mode(f, [&](auto mode) { Backend::Groups::template forward_and_grad<T, mode>(f, groups, out, out_dtype); });
    });
    call.sum(grads);
    return {out, grads};
  }

  static Grads<F::gradients> grad(const F& f, const Tensor& grad_output, const Tensor& state, const Inputs& inputs,
                                  std::optional<Reduction> reduction, const std::vector<bool>& mask) {
    GroupCall<F> call(inputs);
    typename Backend::Guard guard(call.tensors[0]);
    Shape expected = reduction == Reduction::none ? call.group_shape : Shape{};
    check_grad_output(F::name, grad_output, expected, call.tensors[0]);
    expect_one_device(F::name, call.tensors[0], state);
    DType computed = dtype_of(F::name, "state", state, true);
    bool fits = computed == DType::float64 || (computed == DType::float32 && call.computed != DType::float64);
    if (!fits || shape_of(state) != Shape{call.state_size()} || !state.is_contiguous())
      fail(F::name, "the state of the forward pass, of shape ", shape_text({call.state_size()}), ", got ",
           name_of(computed), " of ", shape_text(shape_of(state)));

    Grads<F::gradients> grads = call.new_gradients(mask);
    in_compute_type(computed, computed, [&](auto zero) {
      using T = decltype(zero);
      auto groups = call.problem(&grad_output, &state, grads.data(), reduction);
      with_mode(f, [&](auto mode) { Backend::Groups::template grad<T, mode>(f, groups); });
    });
    call.sum(grads);
    return grads;
  }

 private:
  static Tensor run(const F& f, const Inputs& inputs, std::optional<Reduction> reduction,
                    std::optional<ScalarType> dtype, bool keep, std::optional<Tensor>& state) {
    GroupCall<F> call(inputs);
    typename Backend::Guard guard(call.tensors[0]);
    DType out_dtype = result_dtype(F::name, dtype, call.result);
    bool reduced = reduction != Reduction::none;
    Tensor out = new_empty(call.tensors[0], reduced ? Shape{} : call.group_shape, out_dtype);
    in_compute_type(call.computed, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      if (keep) state = new_empty(call.tensors[0], {call.state_size()}, dtype_of_storage<T>);
      auto groups = call.problem(reduced ? nullptr : &out, state ? &*state : nullptr, nullptr, reduction);
      with_mode(f, [&](auto mode) { Backend::Groups::template forward<T, mode>(f, groups, out, out_dtype); });
    });
    return out;
  }
};

}  // namespace lossreg
