#pragma once
// Cross entropy of the rows of a chunk of scores, by the row kernels.
#include "pass.h"

namespace lossreg::linear {

// The losses of a chunk's rows, and the state of the row kernels, whose last entry is the normaliser.
struct ChunkLosses {
  Tensor loss, state;
};

template <class F, class Backend>
class RowLosses {
 public:
  RowLosses(const BoundedScoreLoss& loss, const Call<F>& call, std::optional<Reduction> reduction, DType loss_dtype)
      : call_(call), loss_(loss), dtype_(loss_dtype) {
    mean_weight_ = weigh_lse<Backend>(loss_, call.target, call.weight, call.probabilities, reduction);
  }

  ChunkLosses of(const Chunk& c) const {
    auto [loss, state] = RowKernel<BoundedScoreLoss, Backend>::forward(loss_, {c.scores, c.target, call_.weight},
                                                                       Reduction::none, scalar_type(dtype_));
    return {loss, state};
  }
  // Writes the gradient in the scores. grad_loss: of each row's loss, or one for all.
  void write_slopes(const Chunk& c, const ChunkLosses& losses, const Tensor& grad_loss, const Tensor& slopes) const {
    RowCall<ScoreLoss> call({c.scores, c.target, call_.weight});
    Rows rows = call.problem(losses.state, &grad_loss, &slopes, nullptr, nullptr);
    in_compute_type(call.result, *known_dtype(grad_loss.scalar_type()), [&](auto zero) {
      with_row_formula(loss_, call.probabilities,
                       [&](const auto& f, auto mode) { Backend::Rows::template grad<decltype(zero), mode>(f, rows); });
    });
  }
  // The gradients in the row loss's target and weight, those that are asked for.
  Grads<ScoreLoss::gradients> shares(const Chunk& c, const ChunkLosses& losses, const Tensor& grad_loss, bool target,
                                     bool weight) const {
    Shape shape = call_.losses_shape(c.count);
    Tensor of_rows = grad_loss.numel() == 1 ? strided(grad_loss, shape, Shape(shape.size())) : grad_loss;
    return RowKernel<BoundedScoreLoss, Backend>::grad(loss_, of_rows, losses.state, {c.scores, c.target, call_.weight},
                                                      Reduction::none, {false, target, weight});
  }

 private:
  const Call<F>& call_;
  BoundedScoreLoss loss_;
  std::optional<Tensor> mean_weight_;
  DType dtype_;
};

}  // namespace lossreg::linear
