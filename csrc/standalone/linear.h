#pragma once
// linear_cross_entropy: the (N, C) scores, or (N, C, d1 ... dk), exist for one chunk of rows at a time.
#include "linear/pass.h"

namespace lossreg {
namespace linear {

// x[0], a gradient of the sum of losses, for a result that is the sum divided by x[2] and has the gradient x[1]. Where
// no row counts, x[2] is 0, and so is the gradient.
struct Scale {
  template <class T>
  HD void operator()(const T (&x)[3], T (&y)[1]) const {
    y[0] = x[2] == T(0) ? T(0) : x[0] / x[2] * x[1];
  }
};

// The sums of the rows' losses and of the chunks' normalisers; there are no more chunks than rows.
struct SumLosses {
  Operand losses, normalisers;
  int64_t chunks;
  HD void operator()(int64_t i, double (&sums)[2]) const {
    sums[0] += get<double>(losses, i);
    if (i < chunks) sums[1] += get<double>(normalisers, i);
  }
};
struct FinishLoss {
  Operand result, normaliser;  // no result: it is not reduced
  bool mean;
  HD void operator()(const double (&sums)[2]) const {
    if (result.data) put(result, 0, mean ? sums[0] / sums[1] : sums[0]);
    put(normaliser, 0, mean ? sums[1] : 1.0);
  }
};

}  // namespace linear

// Scores and their gradient are of the operands' dtype, as in F.linear; losses, and sums over rows, are float32 at
// least.
struct LinearCrossEntropy {
  static constexpr auto name = "linear_cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias=None, Tensor? weight=None, "
      "int ignore_index=-100, str reduction=\"mean\", float label_smoothing=0.0";
  static constexpr int inputs = 5, gradients = 5;
  static constexpr bool keeps_state = true, forward_mask = true;
  int64_t ignore_index;
  double smoothing;

  static LinearCrossEntropy make(int64_t ignore_index, Reduction, double label_smoothing) {
    expect(label_smoothing >= 0 && label_smoothing <= 1, name, "label_smoothing in [0, 1]", label_smoothing);
    return {ignore_index, label_smoothing};
  }

  // Computing the scores again in the backward pass would be a fourth matrix product. A reduced loss does without: its
  // gradient is a number times that of the sum, which the forward pass computes while it has the scores. The gradients
  // in class probabilities and weights are as large as all scores, or rare: those calls, too, start again.
  static bool kept(std::optional<Reduction> reduction, const std::vector<bool>& mask) {
    using namespace linear;
    return reduction != Reduction::none && (mask[kInputAt] || mask[kLinearWeightAt] || mask[kLinearBiasAt]) &&
           !mask[kTargetAt] && !mask[kWeightAt];
  }

  template <class Backend>
  Tensor value(const Inputs& tensors, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return std::get<0>(forward<Backend>(tensors, reduction, dtype, std::vector<bool>(gradients)));
  }

  // The state: the gradients of the sum of losses where they are kept, and the mean's denominator.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& tensors, std::optional<Reduction> reduction,
                                     std::optional<ScalarType> dtype, const std::vector<bool>& mask) const {
    using namespace linear;
    Call<LinearCrossEntropy> call(tensors);
    check(call);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.result), loss_dtype = compute_dtype(out_dtype, call.result);
    bool keep = kept(reduction, mask), reduced = reduction != Reduction::none;
    GradientSums sums(call, keep ? mask : std::vector<bool>(gradients), Backend::Products::sum_dtype(call.dtype));
    Tensor state = new_empty(call.input, {sums.state_size(call.wide())}, call.wide());
    sums.place_in(state);

    Pass<LinearCrossEntropy, Backend> pass(*this, call, loss_dtype, keep);
    if (pass.chunks() == 0) torch::stable::zero_(state);
    Tensor losses = new_empty(call.input, call.losses_shape(call.rows), loss_dtype);
    Tensor normalisers = new_empty(call.input, {pass.chunks()}, DType::float64);
    Tensor one = ones(call.input, {}, call.wide());
    pass.each([&](const Chunk& c) {
      Tensor loss = rows_of(losses, c.first, c.count), normaliser = rows_of(normalisers, c.index, 1);
      torch::stable::copy_(loss, c.loss);
      torch::stable::copy_(normaliser, rows_of(c.state, c.state.numel() - 1, 1));
      if (keep) pass.backpropagate(c, one, sums);
    });

    Tensor result = new_empty(call.input, {}, out_dtype);
    FinishLoss finish{reduced ? operand_of(result) : Operand{}, operand_of(normaliser_in(state)),
                      reduction == Reduction::mean};
    SumLosses sum{operand_of(losses), operand_of(normalisers), pass.chunks()};
    Backend::template total<2>(losses, losses.numel(), 1, sum, finish);
    if (reduced) return {result, state};
    Tensor of_rows = torch::stable::to(losses, scalar_type(out_dtype));
    return {torch::stable::reshape(of_rows, call.row_shape), state};
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& tensors,
                        std::optional<Reduction> reduction, const std::vector<bool>& mask) const {
    using namespace linear;
    Call<LinearCrossEntropy> call(tensors);
    check(call);
    typename Backend::Guard guard(call.input);
    bool reduced = reduction != Reduction::none;
    DType grad_dtype = check_grad_output(name, grad_output, reduced ? Shape{} : call.row_shape, call.input);
    for (int k : {kTargetAt, kWeightAt})
      check_no_gradient_beside_indices(name, call.name(k), mask[k], !call.probabilities);
    GradientSums sums(call, mask, Backend::Products::sum_dtype(call.dtype));
    bool keep = kept(reduction, mask);
    check_state(name, state, {keep ? sums.state_size(call.wide()) : 1}, call.wide(), call.input);

    Grads<gradients> grads;
    for (int k = 0; k < kArguments; k++)
      if (mask[k]) grads[k] = empty_like(*tensors[k], *known_dtype(tensors[k]->scalar_type()));
    Tensor normaliser = normaliser_in(state);
    if (keep) {
      sums.place_in(state);
    } else {
      sums.place_beside(grads);
      Tensor grad_loss = torch::stable::reshape(grad_output, reduced ? Shape{1} : call.losses_shape(call.rows));
      if (reduced) {
        grad_loss = new_empty(call.input, {1}, call.wide());
        map_tensors<Backend, Scale>(ScoreLoss::name, call.wide(),
                                    {ones(state, {1}, call.wide()), grad_output, normaliser}, grad_loss);
      }
      recompute<Backend>(call, grad_loss, sums, grads[kTargetAt], grads[kWeightAt]);
    }
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt}) {
      if (!mask[k]) continue;
      Tensor part = torch::stable::reshape(*sums.part[k], shape_of(*grads[k]));
      DType compute = compute_dtype(grad_dtype, call.dtype);
      if (keep) map_tensors<Backend, Scale>(ScoreLoss::name, compute, {part, grad_output, normaliser}, *grads[k]);
      else if (part.const_data_ptr() != grads[k]->const_data_ptr()) torch::stable::copy_(*grads[k], part);
    }
    return grads;
  }

 private:
  static Tensor normaliser_in(const Tensor& state) { return rows_of(state, state.numel() - 1, 1); }
  // torch.nn.functional.linear_cross_entropy refuses any ignore_index there; the default is no different from none.
  void check(const linear::Call<LinearCrossEntropy>& call) const {
    if (call.probabilities && ignore_index != -100)
      fail(name, "class indices as target beside an ignore_index, got class probabilities and ", ignore_index);
  }

  template <class Backend>
  void recompute(const linear::Call<LinearCrossEntropy>& call, const Tensor& grad_loss, linear::GradientSums& sums,
                 std::optional<Tensor>& grad_target, std::optional<Tensor>& grad_weight) const {
    using namespace linear;
    bool products = sums.elements > 0;
    DType loss_dtype = compute_dtype(call.result, call.dtype);
    Pass<LinearCrossEntropy, Backend> pass(*this, call, loss_dtype, products);
    if (pass.chunks() == 0)
      for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt})
        if (sums.mask[k]) torch::stable::zero_(*sums.part[k]);
    if (grad_weight) torch::stable::zero_(*grad_weight);
    bool apart = grad_target && !grad_target->is_contiguous();
    Tensor by_row;  // the gradient in the target, as the chunks have it
    if (grad_target) {
      Shape shape = call.scores_shape(call.rows);
      by_row = apart ? new_empty(call.input, shape, *known_dtype(grad_target->scalar_type()))
                     : torch::stable::reshape(*grad_target, shape);
    }
    pass.each([&](const Chunk& c) {
      Tensor of_chunk = grad_loss.size(0) == 1 ? grad_loss : rows_of(grad_loss, c.first, c.count);
      if (grad_target || grad_weight) {
        auto shares = pass.backpropagate_shares(c, of_chunk, bool(grad_target), bool(grad_weight));
        if (grad_target) {
          Tensor place = rows_of(by_row, c.first, c.count);
          torch::stable::copy_(place, *shares[1]);
        }
        if (grad_weight)
          map_tensors<Backend, Add>(ScoreLoss::name, call.wide(), {*grad_weight, *shares[2]}, *grad_weight);
      }
      if (products) pass.backpropagate(c, of_chunk, sums);
    });
    if (apart) torch::stable::copy_(*grad_target, torch::stable::reshape(by_row, shape_of(*grad_target)));
  }
};

using Ops = WrittenOps<LinearCrossEntropy>;

}  // namespace lossreg
