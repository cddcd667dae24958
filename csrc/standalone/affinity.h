#pragma once
// Losses over pairs of pixels that lie near each other. Nothing is unfolded: a pair is a pixel and a displacement, and
// each pixel gathers what its neighbours say about it, so that no sum depends on an order of threads.
#include "affinity/fields.h"
#include "affinity/windows.h"

namespace lossreg {

// After Yu et al., Context Prior for Scene Segmentation, arXiv 2004.01547, local: over every window that fits, the
// binary cross entropy of <x_a, x_b> against [y_a = y_b] for all ordered pairs (a, b) of the window. A pair has the
// same loss in every window, so each is visited once, and its loss counts as often as there are windows that hold it.
struct AffinityLoss {
  static constexpr auto name = "affinity_loss";
  static constexpr auto args = "Tensor input, Tensor target, int kernel_size=3, int ignore_index=-100";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool loss = true, keeps_state = true;
  int64_t kernel_size, ignore_index;

  static AffinityLoss make(int64_t kernel_size, int64_t ignore_index) {
    expect(kernel_size >= 1 && kernel_size % 2 == 1, name, "an odd kernel_size of at least 1", kernel_size);
    return {kernel_size, ignore_index};
  }
  void check_kernel_size(const Shape& shape) const {
    if (kernel_size > std::min(shape[2], shape[3]))
      fail(name, "kernel_size of at most the height and the width of input, ", shape_text({shape[2], shape[3]}),
           ", got ", kernel_size);
  }

  // The state is the number of pairs.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    ImageCall<AffinityLoss> call(inputs);
    check_kernel_size(call.shape);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.dtype);
    Tensor out = new_empty(call.input, {}, out_dtype), state = new_empty(call.input, {1}, DType::float64);
    MeanOrZero finish{operand_of(out), static_cast<double*>(state.mutable_data_ptr()), 1.0};
    call.with_images<Backend::kStrip>(out_dtype, ignore_index, [&](auto images, int64_t strips) {
      AffinitySum<decltype(images)> body{images, kernel_size};
      int64_t cost = Backend::kStrip * call.shape[1] * (2 * kernel_size - 1) * kernel_size;
      Backend::template total<2>(call.input, strips, cost, body, finish);
    });
    return {out, state};
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& inputs, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    ImageCall<AffinityLoss> call(inputs);
    check_kernel_size(call.shape);
    DType grad_dtype = call.check_grad(grad_output, state, 1);
    typename Backend::Guard guard(call.input);
    if (!mask[0]) return {};
    Tensor result = empty_like(call.input, call.dtype);
    call.with_images<Backend::kStrip>(grad_dtype, ignore_index, [&](auto images, int64_t strips) {
      using S = typename decltype(images)::Storage;
      AffinityGrad<decltype(images)> body{images, kernel_size, ScoreGradient<S>(result), operand_of(grad_output),
                                          static_cast<const double*>(state.const_data_ptr())};
      int64_t cost = Backend::kStrip * call.shape[1] * (2 * kernel_size - 1) * (2 * kernel_size - 1);
      Backend::each(strips, cost, body);
    });
    return {result};
  }
};

// Ke et al., Adaptive Affinity Fields for Semantic Segmentation, arXiv 1803.10335, with neighbours of distance 1.
struct AffinityFieldLoss {
  static constexpr auto name = "affinity_field_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float kl_margin=3.0, float lambda_edge=1.0, float lambda_not_edge=1.0, "
      "int ignore_index=-100";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool loss = true, keeps_state = true;
  double kl_margin, lambda_edge, lambda_not_edge;
  int64_t ignore_index;

  static AffinityFieldLoss make(double kl_margin, double lambda_edge, double lambda_not_edge, int64_t ignore_index) {
    expect(kl_margin >= 0, name, "kl_margin >= 0", kl_margin);
    expect(lambda_edge >= 0, name, "lambda_edge >= 0", lambda_edge);
    expect(lambda_not_edge >= 0, name, "lambda_not_edge >= 0", lambda_not_edge);
    return {kl_margin, lambda_edge, lambda_not_edge, ignore_index};
  }

  // Of one pair with the divergence d.
  template <class T>
  HD T value(T d, bool same) const {
    return same ? T(lambda_edge) * d : T(lambda_not_edge) * relu(T(kl_margin) - d);
  }
  template <class T>
  HD T slope(T d, bool same) const {
    T gap = T(kl_margin) - d;
    T step = gap > T(0) ? T(1) : (gap < T(0) ? T(0) : T(0.5));  // as torch.maximum(gap, 0)
    return same ? T(lambda_edge) : -T(lambda_not_edge) * step;
  }

  // The state is the log-sum-exp of each pixel, and 8 times the number of valid ones.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    ImageCall<AffinityFieldLoss> call(inputs);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.dtype);
    Tensor out = new_empty(call.input, {}, out_dtype);
    Tensor state = new_empty(call.input, {call.pixels() + 1}, DType::float64);
    auto* lse = static_cast<double*>(state.mutable_data_ptr());
    MeanOrZero finish{operand_of(out), lse + call.pixels(), 8.0};
    call.with_images<Backend::kStrip>(out_dtype, ignore_index, [&](auto images, int64_t strips) {
      using Im = decltype(images);
      int64_t cost = Backend::kStrip * call.shape[1];
      Backend::each(strips, 4 * cost, LogSumExpOfPixels<Im>{images, lse});
      FieldSum<AffinityFieldLoss, Im> body{*this, images, lse};
      Backend::template total<2>(call.input, strips, 16 * cost, body, finish);
    });
    return {out, state};
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& inputs, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    ImageCall<AffinityFieldLoss> call(inputs);
    DType grad_dtype = call.check_grad(grad_output, state, call.pixels() + 1);
    typename Backend::Guard guard(call.input);
    if (!mask[0]) return {};
    Tensor result = empty_like(call.input, call.dtype);
    auto* lse = static_cast<const double*>(state.const_data_ptr());
    call.with_images<Backend::kStrip>(grad_dtype, ignore_index, [&](auto images, int64_t strips) {
      using Im = decltype(images);
      FieldGrad<AffinityFieldLoss, Im> body{*this,
                                            images,
                                            lse,
                                            ScoreGradient<typename Im::Storage>(result),
                                            operand_of(grad_output),
                                            lse + call.pixels()};
      Backend::each(strips, 64 * Backend::kStrip * call.shape[1], body);
    });
    return {result};
  }
};

using Ops = WrittenOps<AffinityLoss, AffinityFieldLoss>;

}  // namespace lossreg
