#pragma once
// A pass of linear_cross_entropy over its rows: products and row kernels, a chunk of rows at a time.
#include "call.h"

namespace lossreg::linear {

// out = a b
template <class Backend>
void product(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.scalar_type() == a.scalar_type()) call_aten("aten::mm", "out", a, b, out);
  else Backend::wide_product(out, a, b);
}

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
    constexpr int64_t whole = Backend::Products::whole_rows, step = Backend::Products::row_step;
    bool apart = gradients && !Backend::Rows::gradients_in_place;
    row_step_ = (call.columns + step - 1) / step * step;
    int64_t weight_bytes = call.columns * call.features * size_of(call.dtype);
    int64_t room = Backend::Products::chunk_bytes(weight_bytes) / (size_of(call.dtype) * (apart ? 2 : 1));
    int64_t most = row_step_ ? std::max<int64_t>(1, room / row_step_) : 1;
    if (most > whole) most -= most % whole;
    chunks_ = row_step_ ? (call.rows + most - 1) / most : 0;    // nothing to do for no places
    rows_ = chunks_ ? (call.rows + chunks_ - 1) / chunks_ : 0;  // chunks of about one size
    rows_ = std::min((rows_ + whole - 1) / whole * whole, std::min(most, call.rows));
    scores_ = matrix();
    slopes_ = apart ? matrix() : scores_;
  }
  int64_t chunks() const { return chunks_; }

  template <class Use>
  void each(Use use) const {
    for (int64_t i = 0; i < chunks_; i++) {
      int64_t first = i * rows_, count = std::min(rows_, call_.rows - first);
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
    if (gradients.mask[kLinearWeightAt]) sum_rows(*gradients.part[kLinearWeightAt], c.index == 0, slopes, c.input);
    if (gradients.mask[kLinearBiasAt])
      sum_rows(*gradients.part[kLinearBiasAt], c.index == 0, slopes, ones(c.input, {c.count, 1}, call_.dtype));
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
  // (rows, C P), each row as far from the next as products like it
  Tensor matrix() const {
    return empty_strided(call_.input, {rows_, call_.columns}, {std::max<int64_t>(1, row_step_), 1}, call_.dtype);
  }
  // The first rows of a matrix as the row kernels have them.
  Tensor as_scores(const Tensor& t, int64_t count) const {
    Shape shape = call_.scores_shape(count), strides = contiguous_strides(shape);
    strides[0] = t.strides()[0];
    return strided(t, shape, strides);
  }
  // sum += slopes^T x; the first chunk sets it.
  void sum_rows(const Tensor& sum, bool first, const Tensor& slopes, const Tensor& x) const {
    Tensor by_class = transposed(slopes);
    if (sum.scalar_type() == x.scalar_type()) {
      if (first) product<Backend>(sum, by_class, x);
      else Backend::add_product(sum, sum, 1.0, by_class, x);
      return;
    }
    // low precision: some classes at a time, and added up in float32
    int64_t row_bytes = std::max<int64_t>(1, x.size(1)) * size_of(call_.wide());
    int64_t most = std::max<int64_t>(1, Backend::Products::chunk_bytes(0) / 8 / row_bytes);
    for (int64_t at = 0; at < call_.columns; at += most) {
      int64_t count = std::min(most, call_.columns - at);
      Tensor part = new_empty(x, {count, x.size(1)}, call_.wide()), to = rows_of(sum, at, count);
      product<Backend>(first ? to : part, rows_of(by_class, at, count), x);
      if (!first) map_tensors<Backend, Add>(ScoreLoss::name, call_.wide(), {to, part}, to);
    }
  }

  const Call<F>& call_;
  const ScoreLoss row_loss_;
  DType loss_dtype_;
  int64_t chunks_, rows_, row_step_;
  Tensor scores_, slopes_;
};

}  // namespace lossreg::linear
