#pragma once
// A pass of linear_cross_entropy over its rows: products and row kernels, a chunk of rows at a time.
#include "call.h"

namespace lossreg::linear {

// The rows [first, first + count): their losses, and the state of the row kernels, whose last entry is the normaliser.
struct Chunk {
  int64_t index, first, count;
  Tensor input, scores, target, loss, state;
};

// A pass over all rows, one chunk at a time.
template <class F, class Backend>
class Pass {
 public:
  Pass(const F& f, const Call<F>& call, DType loss_dtype, bool gradients)
      : call_(call), row_loss_{{f.ignore_index, f.smoothing}}, loss_dtype_(loss_dtype) {
    bool apart = gradients && !Backend::Rows::gradients_in_place;
    int64_t weight_bytes = call.columns * call.features * size_of(call.dtype);
    chunks_ = RowChunks::of<typename Backend::Products>(call.rows, call.columns, size_of(call.dtype) * (apart ? 2 : 1),
                                                        weight_bytes);
    scores_ = chunks_.matrix(call.input, call.dtype);
    slopes_ = apart ? chunks_.matrix(call.input, call.dtype) : scores_;
  }
  int64_t chunks() const { return chunks_.count; }

  template <class Use>
  void each(Use use) const {
    for (int64_t i = 0; i < chunks_.count; i++) {
      int64_t first = chunks_.first(i), count = chunks_.size(i);
      Chunk c{i,
              first,
              count,
              rows_of(call_.input, first, count),
              as_scores(scores_, count),
              rows_of(call_.target, first, count),
              {},
              {}};
      Tensor classes = transposed(call_.linear_weight);
      Tensor scores = rows_of(scores_, 0, count);
      if (call_.linear_bias) Backend::add_product(scores, *call_.linear_bias, 1.0, c.input, classes);
      else product<Backend>(scores, c.input, classes);
      std::tie(c.loss, c.state) = RowKernel<ScoreLoss, Backend>::forward(row_loss_, {c.scores, c.target, call_.weight},
                                                                         Reduction::none, scalar_type(loss_dtype_));
      use(c);
    }
  }

  // Adds the chunk's part to the gradients. grad_loss: of each row's loss, or one for all. Destroys the scores.
  void backpropagate(const Chunk& c, const Tensor& grad_loss, const GradientSums& gradients) const {
    Tensor slopes = rows_of(slopes_, 0, c.count), of_scores = as_scores(slopes_, c.count);
    RowCall<ScoreLoss> call({c.scores, c.target, call_.weight});
    Rows rows = call.problem(c.state, &grad_loss, &of_scores, nullptr, nullptr);
    in_compute_type(call.result, *known_dtype(grad_loss.scalar_type()), [&](auto zero) {
      with_row_mode<ScoreLoss>(row_loss_.mode(call.probabilities),
                               [&](auto mode) { Backend::Rows::template grad<decltype(zero), mode>(row_loss_, rows); });
    });
    if (gradients.mask[kInputAt])
      product<Backend>(rows_of(*gradients.part[kInputAt], c.first, c.count), slopes, call_.linear_weight);
    auto add = [&](int k, const Tensor& right) {
      add_over_rows<Backend>(ScoreLoss::name, *gradients.part[k], c.index == 0, slopes, right);
    };
    if (gradients.mask[kLinearWeightAt]) add(kLinearWeightAt, c.input);
    if (gradients.mask[kLinearBiasAt]) add(kLinearBiasAt, ones(c.input, {c.count, 1}, call_.dtype));
  }
  // The gradients in the row loss's target and weight, those that are asked for.
  Grads<ScoreLoss::gradients> backpropagate_shares(const Chunk& c, const Tensor& grad_loss, bool target,
                                                   bool weight) const {
    Shape shape = call_.losses_shape(c.count);
    Tensor of_rows = grad_loss.numel() == 1 ? strided(grad_loss, shape, Shape(shape.size())) : grad_loss;
    return RowKernel<ScoreLoss, Backend>::grad(row_loss_, of_rows, c.state, {c.scores, c.target, call_.weight},
                                               Reduction::none, {false, target, weight});
  }

 private:
  // The first rows of a matrix as the row kernels have them.
  Tensor as_scores(const Tensor& t, int64_t count) const {
    Shape shape = call_.scores_shape(count), strides = contiguous_strides(shape);
    strides[0] = t.strides()[0];
    return strided(t, shape, strides);
  }

  const Call<F>& call_;
  const ScoreLoss row_loss_;
  DType loss_dtype_;
  RowChunks chunks_;
  Tensor scores_, slopes_;
};

}  // namespace lossreg::linear
