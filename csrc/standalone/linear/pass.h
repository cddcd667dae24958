#pragma once
// A pass over the rows of a linear layer's scores: its products, a chunk of rows at a time.
#include "call.h"

namespace lossreg::linear {

// The rows [first, first + count).
struct Chunk {
  int64_t index, first, count;
  Tensor input, scores, target;
};

// A pass over all rows, one chunk at a time.
template <class F, class Backend>
class Pass {
 public:
  Pass(const Call<F>& call, bool gradients) : call_(call) {
    // The kernels of groups, too, read a number before they write its gradient.
    bool apart = gradients && !Backend::Rows::gradients_in_place;
    int64_t weight_bytes = call.columns * call.features * size_of(call.dtype);
    chunks_ = RowChunks::of<typename Backend::Products>(call.rows, call.columns, size_of(call.dtype) * (apart ? 2 : 1),
                                                        Backend::Products::chunk_bytes(weight_bytes));
    scores_ = chunks_.matrix(call.input, call.dtype);
    slopes_ = apart ? chunks_.matrix(call.input, call.dtype) : scores_;
  }
  int64_t chunks() const { return chunks_.count; }

  template <class Use>
  void each(Use use) const {
    for (int64_t i = 0; i < chunks_.count; i++) {
      int64_t first = chunks_.first(i), count = chunks_.size(i);
      Tensor input = rows_of(call_.input, first, count), scores = rows_of(scores_, 0, count);
      Tensor classes = transposed(call_.linear_weight);
      if (call_.linear_bias) Backend::add_product(scores, *call_.linear_bias, 1.0, input, classes);
      else product<Backend>(scores, input, classes);
      use(Chunk{i, first, count, input, as_scores(scores_, count), rows_of(call_.target, first, count)});
    }
  }

  // Where the gradient in a chunk's scores belongs. It may be the place of the scores.
  Tensor slopes(const Chunk& c) const { return as_scores(slopes_, c.count); }
  // Adds to the gradients what those slopes give.
  void backpropagate(const Chunk& c, const GradientSums& gradients) const {
    Tensor slopes = rows_of(slopes_, 0, c.count);
    if (gradients.mask[kInputAt])
      product<Backend>(rows_of(*gradients.part[kInputAt], c.first, c.count), slopes, call_.linear_weight);
    auto add = [&](int k, const Tensor& right) {
      add_over_rows<Backend>(F::name, *gradients.part[k], c.index == 0, slopes, right);
    };
    if (gradients.mask[kLinearWeightAt]) add(kLinearWeightAt, c.input);
    if (gradients.mask[kLinearBiasAt]) add(kLinearBiasAt, ones(c.input, {c.count, 1}, call_.dtype));
  }

 private:
  // The first rows of a matrix as the row kernels have them.
  Tensor as_scores(const Tensor& t, int64_t count) const {
    Shape shape = call_.scores_shape(count), strides = contiguous_strides(shape);
    strides[0] = t.strides()[0];
    return strided(t, shape, strides);
  }

  const Call<F>& call_;
  RowChunks chunks_;
  Tensor scores_, slopes_;
};

}  // namespace lossreg::linear
