#pragma once
// The tensors of a call of a loss of a linear layer's scores, and the places of its gradients.
#include "../../formulas/shared/cross_entropy.h"
#include "../../skeletons/rowwise/kernel.h"
#include "../shared/products.h"

namespace lossreg {

// Cross entropy of a chunk's scores, under the name that messages begin with.
struct ScoreLoss : CrossEntropy {
  static constexpr auto name = "linear_cross_entropy";
  static constexpr auto args = "Tensor scores, Tensor target, Tensor? weight";
};
using BoundedScoreLoss = Bounded<ScoreLoss>;

namespace linear {

// The tensor arguments in the schema's order.
enum Argument { kInputAt, kLinearWeightAt, kTargetAt, kLinearBiasAt, kWeightAt, kArguments };

// The tensors of one call of F, checked against each other, and the scores as those of the row formula F::Scores.
// Unbatched, they count as one row; the leading dimensions of an input with several count as one. The d1 ... dk of
// linear_weight are one dimension of P places, each a loss of its own.
template <class F>
struct Call {
  Tensor input, linear_weight, target;        // (N, D), (C P, D), (N, ...) or (N, C, ...), where ... is P if there is k
  std::optional<Tensor> linear_bias, weight;  // (C P), (C)
  DType dtype, result;
  Shape row_shape;  // of the losses: (..., d1 ... dk)
  Shape places;     // (P), or () without k
  int64_t rows, features, classes, columns;
  bool probabilities;

  explicit Call(const Inputs& tensors)
      : input(detached(required(F::name, F::args, kInputAt, tensors[kInputAt]))),
        linear_weight(detached(required(F::name, F::args, kLinearWeightAt, tensors[kLinearWeightAt]))),
        target(detached(required(F::name, F::args, kTargetAt, tensors[kTargetAt]))) {
    dtype = dtype_of(F::name, name(kInputAt), input, true);
    Shape shape = shape_of(input), of_weight = shape_of(linear_weight);
    if (shape.empty()) fail(F::name, "input of shape (..., D), got []");
    features = shape.back();
    if (of_weight.size() < 2 || of_weight.back() != features)
      fail(F::name, "linear_weight of shape (C, ..., ", features, ") for input of shape ", shape_text(shape), ", got ",
           shape_text(of_weight));
    check_operand(F::name, name(kLinearWeightAt), linear_weight, input, dtype);
    classes = of_weight[0];
    Shape outputs(of_weight.begin(), of_weight.end() - 1);  // (C, d1 ... dk)
    Shape inner(outputs.begin() + 1, outputs.end());
    columns = element_count(F::name, outputs);
    if (!inner.empty()) {
      places = {element_count(F::name, inner)};
      if (shape.size() != 2)
        fail(F::name, "input of shape (N, ", features, ") for linear_weight of shape ", shape_text(of_weight), ", got ",
             shape_text(shape));
    }
    if (tensors[kLinearBiasAt]) {
      linear_bias = detached(*tensors[kLinearBiasAt]);
      check_shape(F::name, "linear_bias", shape_of(*linear_bias), outputs, "linear_weight", of_weight);
      check_operand(F::name, name(kLinearBiasAt), *linear_bias, input, dtype);
      linear_bias = torch::stable::reshape(*linear_bias, {columns});
    }
    if (tensors.size() > kWeightAt && tensors[kWeightAt]) weight = detached(*tensors[kWeightAt]);

    row_shape.assign(shape.begin(), shape.end() - 1);
    rows = element_count(F::name, row_shape);
    if (shape.size() > 2) {
      // the row kernels know no more than one dimension before the classes
      Shape expected = row_shape;
      if (is_floating(dtype_of(F::name, name(kTargetAt), target, false))) expected.push_back(classes);
      check_shape(F::name, name(kTargetAt), shape_of(target), expected, "input", shape);
      target = torch::stable::reshape(target, expected.size() == row_shape.size() ? Shape{rows} : Shape{rows, classes});
    }
    // the row skeleton's own checks, on scores of that shape that take no memory
    Shape of_scores = shape.size() == 1 ? Shape{} : Shape{rows};
    of_scores.insert(of_scores.end(), outputs.begin(), outputs.end());
    Tensor scores = strided(new_empty(input, {}, dtype), of_scores, Shape(of_scores.size()));
    RowCall<typename F::Scores> checked({scores, target, weight});
    probabilities = checked.probabilities;
    result = checked.result;
    row_shape.insert(row_shape.end(), inner.begin(), inner.end());
    element_count(F::name, {rows, features});
    element_count(F::name, {rows, columns});
    input = torch::stable::reshape(input, {rows, features});
    linear_weight = torch::stable::reshape(linear_weight, {columns, features});
    target = torch::stable::reshape(target, probabilities ? scores_shape(rows) : losses_shape(rows));
  }

  ArgumentName name(int k) const { return {F::args, k}; }
  // Of the losses of so many rows, and of their scores, whose columns are the places of one class, then of the next.
  Shape losses_shape(int64_t count) const { return with_places({count}); }
  Shape scores_shape(int64_t count) const { return with_places({count, classes}); }
  // What sums over rows are kept in.
  DType wide() const { return compute_dtype(dtype); }

 private:
  Shape with_places(Shape shape) const {
    shape.insert(shape.end(), places.begin(), places.end());
    return shape;
  }
};

// The gradients of input, linear_weight and linear_bias, of those that are asked for, as sums over rows.
struct GradientSums {
  DType dtype;
  Shape shape[kArguments];
  int64_t elements = 0;
  std::vector<bool> mask;
  Grads<kArguments> part;

  template <class F>
  GradientSums(const Call<F>& call, const std::vector<bool>& mask, DType dtype) : dtype(dtype), mask(mask) {
    shape[kInputAt] = {call.rows, call.features};
    shape[kLinearWeightAt] = {call.columns, call.features};
    shape[kLinearBiasAt] = {call.columns, 1};
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt})
      if (mask[k]) elements += shape[k][0] * shape[k][1];
  }
  void zero() {
    for (auto& sum : part)
      if (sum) torch::stable::zero_(*sum);
  }
  // The elements of the state, a tensor of dtype `wide`: the sums one after the other, then the mean's denominator.
  int64_t state_size(DType wide) const { return numbers_for(elements, dtype, wide) + 1; }
  Tensor new_state(const Tensor& like, DType wide) const { return lossreg::new_state(like, elements, dtype, 1, wide); }
  // Puts the sums into a state.
  void place_in(const Tensor& state) {
    Tensor flat = viewed_as(state, dtype);
    int64_t start = 0;
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt}) {
      if (!mask[k]) continue;
      part[k] = strided(flat, shape[k], {shape[k][1], 1}, start);
      start += shape[k][0] * shape[k][1];
    }
  }
  // Puts each into the gradient itself, where that is there and can hold it, else into a tensor of its own.
  template <size_t N>
  void place_beside(const Grads<N>& grads, const Tensor& like) {
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt}) {
      if (!mask[k]) continue;
      bool fits = grads[k] && grads[k]->scalar_type() == scalar_type(dtype) && grads[k]->is_contiguous();
      part[k] = fits ? strided(*grads[k], shape[k], {shape[k][1], 1}) : new_empty(like, shape[k], dtype);
    }
  }
  // Then fills the gradients from those.
  template <size_t N>
  void copy_to(Grads<N>& grads) const {
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt}) {
      if (!mask[k] || part[k]->const_data_ptr() == grads[k]->const_data_ptr()) continue;
      torch::stable::copy_(*grads[k], torch::stable::reshape(*part[k], shape_of(*grads[k])));
    }
  }
};

}  // namespace linear
}  // namespace lossreg
