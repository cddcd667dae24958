#pragma once
// Contrastive losses: each vector is compared with every other one, and the matrix of these comparisons is never held.
#include "contrast/across.h"
#include "contrast/among.h"

namespace lossreg {

// -1/N sum_ij log sigma(y_ij (s a_i b_j + c)), y = 1 where i = j, else -1. The gradient of the sum of the losses is
// that of the result but for one number, and is known as soon as a chunk's scores are: the forward pass computes it, so
// that these need no second product.
struct SigLipLoss {
  static constexpr auto name = "siglip_loss";
  static constexpr auto args = "Tensor input, Tensor target, Tensor logit_scale, Tensor logit_bias";
  static constexpr int inputs = 4, gradients = 4;
  static constexpr bool keeps_state = true, forward_mask = true, loss = true;

  static SigLipLoss make() { return {}; }
  using Call = contrast::PairCall<SigLipLoss>;
  using Kept = contrast::KeptGradients<SigLipLoss>;

  template <class Backend>
  Tensor value(const Inputs& tensors, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return std::get<0>(forward<Backend>(tensors, reduction, dtype, std::vector<bool>(gradients)));
  }

  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& tensors, std::optional<Reduction>, std::optional<ScalarType> dtype,
                                     const std::vector<bool>& mask) const {
    using namespace contrast;
    Call call(tensors);
    typename Backend::Guard guard(call.input);
    DType sums_dtype = Backend::Products::sum_dtype(call.dtype);
    Tensor result = new_empty(call.input, {}, result_dtype(name, dtype, call.dtype));
    Kept kept(call, mask, sums_dtype, Kept::new_state(call, mask, sums_dtype));
    Tensor sums = new_empty(call.input, {call.rows, 3}, DType::float64);
    bool products = mask[0] || mask[1];
    auto pass = call.template pass<Backend>(products);
    pass.each([&](const Chunk& c) {
      with_slopes<Backend>(c, products, [&](auto slopes) {
        using T = typename decltype(slopes)::Compute;
        using S = typename decltype(slopes)::Storage;
        SigLipRows<T, S, kClassStrip<Backend>> body{slopes, operand_of(call.numbers[0]), operand_of(call.numbers[1]),
                                                    static_cast<double*>(sums.mutable_data_ptr())};
        Backend::teams(c.count, call.rows, body);
      });
      if (mask[0]) pass.rows_gradient(c, kept.part[0]);
      if (mask[1]) pass.add_columns_gradient(c, kept.part[1]);
    });
    FinishSigLip finish{operand_of(result), operand_of(kept.number(0)), operand_of(kept.number(1)), double(call.rows)};
    Backend::template total<3>(sums, call.rows, 1, AddSigLip{static_cast<const double*>(sums.const_data_ptr())},
                               finish);
    return {result, kept.state};
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& tensors, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    Call call(tensors);
    typename Backend::Guard guard(call.input);
    check_grad_output(name, grad_output, {}, call.input);
    DType sums = Backend::Products::sum_dtype(call.dtype);
    check_state(name, state, {Kept::size(call, mask, sums)}, call.wide(), call.input);
    return Kept(call, mask, sums, state).template times<Backend>(call, tensors, grad_output, double(call.rows), mask);
  }
};

// 1/2 (CE(z, i) + CE(z^T, i)) of each pair i, z = s a b^T. A column's softmax is known when all rows have been seen:
// where these are one chunk, its products are still there for the gradients, else they are made again. As in
// siglip_loss, the forward pass computes the gradients of a reduced loss. Without a reduction, each pair's loss has a
// gradient of its own, which the backward pass alone knows: what is kept then are the log-sum-exps.
struct ClipLoss {
  static constexpr auto name = "clip_loss";
  static constexpr auto args = "Tensor input, Tensor target, Tensor logit_scale, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 3;
  static constexpr bool keeps_state = true, forward_mask = true;

  static ClipLoss make(Reduction) { return {}; }
  using Call = contrast::PairCall<ClipLoss>;
  using Kept = contrast::KeptGradients<ClipLoss>;

  static bool keeps_gradients(std::optional<Reduction> reduction, const std::vector<bool>& mask) {
    return reduction != Reduction::none && (mask[0] || mask[1] || mask[2]);
  }

  template <class Backend>
  Tensor value(const Inputs& tensors, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return std::get<0>(forward<Backend>(tensors, reduction, dtype, std::vector<bool>(gradients)));
  }

  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& tensors, std::optional<Reduction> reduction,
                                     std::optional<ScalarType> dtype, const std::vector<bool>& mask) const {
    using namespace contrast;
    Call call(tensors);
    typename Backend::Guard guard(call.input);
    bool reduced = reduction != Reduction::none, keep = keeps_gradients(reduction, mask);
    DType sums = Backend::Products::sum_dtype(call.dtype);
    Tensor result = new_empty(call.input, reduced ? Shape{} : Shape{call.rows}, result_dtype(name, dtype, call.dtype));
    Tensor log_sums = new_empty(call.input, {4 * call.rows}, call.wide()), state = log_sums;
    if (keep) state = Kept::new_state(call, mask, sums);
    Tensor own_scores = new_empty(call.input, {call.rows}, call.wide());
    auto pass = call.template pass<Backend>(keep && (mask[0] || mask[1]), keep);
    bool once = pass.chunks().count == 1;
    std::optional<Slopes<Backend>> slopes;
    if (keep)
      slopes.emplace(Slopes<Backend>{call, pass, log_sums, ones(call.input, {call.rows}, call.wide()), mask,
                                     Kept(call, mask, sums, state)});
    Tensor segments =
        new_empty(call.input, {2, (pass.chunks().rows + kSegment - 1) / kSegment, call.rows}, call.wide());
    pass.each([&](const Chunk& c) {
      with_products(c, [&](auto products) {
        using T = typename decltype(products)::Compute;
        Operand scale = operand_of(call.numbers[0]);
        T* own = static_cast<T*>(own_scores.mutable_data_ptr());
        ClipRows<T, kClassStrip<Backend>> rows{products, scale, of_rows<T>(log_sums, call.rows), own};
        Backend::teams(c.count, call.rows, rows);

        constexpr int strip = Backend::kStrip;
        int64_t count = (c.count + kSegment - 1) / kSegment, strips = (call.rows + strip - 1) / strip;
        T *max = static_cast<T*>(segments.mutable_data_ptr()), *sum = max + segments.numel() / 2;
        ClipSegments<T, strip> columns{products, scale, c.count, max, sum};
        Backend::each(count * strips, kSegment * strip, columns);
        bool last = c.index + 1 == pass.chunks().count;
        auto of = of_columns<T>(log_sums, call.rows);
        Backend::each(call.rows, count, JoinSegments<T>{max, sum, count, call.rows, c.index == 0, last, of});
      });
      if (keep && once) slopes->add(c);
    });
    if (keep && !once) pass.each([&](const Chunk& c) { slopes->add(c); });
    if (keep) slopes->finish();
    in_compute_type(call.dtype, call.dtype, [&](auto zero) {
      using T = decltype(zero);
      ClipValue<T> value{of_rows<T>(log_sums, call.rows), of_columns<T>(log_sums, call.rows),
                         static_cast<const T*>(own_scores.const_data_ptr())};
      if (!reduced) return Backend::each(call.rows, 1, WriteEach<ClipValue<T>>{value, operand_of(result)});
      WriteLoss finish{operand_of(result), reduction == Reduction::mean ? 1.0 / double(call.rows) : 1.0};
      Backend::template total<1>(log_sums, call.rows, 1, AddEach<ClipValue<T>>{value}, finish);
    });
    return {result, state};
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& tensors,
                        std::optional<Reduction> reduction, const std::vector<bool>& mask) const {
    using namespace contrast;
    Call call(tensors);
    typename Backend::Guard guard(call.input);
    bool reduced = reduction != Reduction::none, keep = keeps_gradients(reduction, mask);
    check_grad_output(name, grad_output, reduced ? Shape{} : Shape{call.rows}, call.input);
    DType sums = Backend::Products::sum_dtype(call.dtype);
    check_state(name, state, {keep ? Kept::size(call, mask, sums) : 4 * call.rows}, call.wide(), call.input);
    double divisor = reduction == Reduction::mean ? double(call.rows) : 1.0;
    if (keep) return Kept(call, mask, sums, state).template times<Backend>(call, tensors, grad_output, divisor, mask);
    if (reduced) return {};

    // what each loss's gradient is, is in the slopes
    Kept sum(call, mask, sums, Kept::new_state(call, mask, sums));
    Tensor weight = new_empty(call.input, {call.rows}, call.wide());
    torch::stable::copy_(weight, detached(grad_output));
    auto pass = call.template pass<Backend>(mask[0] || mask[1]);
    Slopes<Backend> slopes{call, pass, state, weight, mask, sum};
    pass.each([&](const Chunk& c) { slopes.add(c); });
    slopes.finish();
    return sum.template times<Backend>(call, tensors, ones(call.input, {}, call.wide()), 1.0, mask);
  }

 private:
  // The gradients of the sum of the losses, each times its weight, chunk by chunk.
  template <class Backend>
  struct Slopes {
    const Call& call;
    const contrast::Pass<Backend>& pass;
    Tensor log_sums, weight;
    std::vector<bool> mask;
    Kept kept;
    Tensor along = new_empty(weight, {call.rows}, DType::float64);

    void add(const contrast::Chunk& c) const {
      contrast::with_slopes<Backend>(c, mask[0] || mask[1], [&](auto slopes) {
        using T = typename decltype(slopes)::Compute;
        using S = typename decltype(slopes)::Storage;
        contrast::ClipSlopes<T, S, kClassStrip<Backend>> body{slopes,
                                                              operand_of(call.numbers[0]),
                                                              of_rows<T>(log_sums, call.rows),
                                                              of_columns<T>(log_sums, call.rows),
                                                              static_cast<const T*>(weight.const_data_ptr()),
                                                              static_cast<double*>(along.mutable_data_ptr())};
        Backend::teams(c.count, call.rows, body);
      });
      if (mask[0]) pass.rows_gradient(c, kept.part[0]);
      if (mask[1]) pass.add_columns_gradient(c, kept.part[1]);
    }
    void finish() const {
      AddLoss sum{static_cast<const double*>(along.const_data_ptr())};
      Backend::template total<1>(along, call.rows, 1, sum, WriteLoss{operand_of(kept.number(0)), 1.0});
    }
  };
  // Log-sum-exps of the rows and of the columns.
  template <class T>
  static contrast::LogSumExps<T> of_rows(const Tensor& state, int64_t rows) {
    T* data = static_cast<T*>(const_cast<void*>(state.const_data_ptr()));
    return {data, data + rows};
  }
  template <class T>
  static contrast::LogSumExps<T> of_columns(const Tensor& state, int64_t rows) {
    auto of = of_rows<T>(state, rows);
    return {of.max + 2 * rows, of.log + 2 * rows};
  }
};

// Of the two views of each of N things, the other 2N - 1 views are a view's classes and its pair is the target; the
// mean over all views.
struct NTXentLoss {
  static constexpr auto name = "nt_xent_loss";
  static constexpr auto args = "Tensor input, Tensor target, float temperature=0.5";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr bool keeps_state = true, loss = true;
  double temperature;

  static NTXentLoss make(double temperature) { return {contrast::checked_temperature(name, temperature)}; }
  using Call = contrast::PairCall<NTXentLoss>;

  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& tensors, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    Call call(tensors);
    typename Backend::Guard guard(call.input);
    return contrast::among_value<Backend>(name, {call.input, call.target}, contrast::OtherView{call.rows}, temperature,
                                          NAN, call.dtype, result_dtype(name, dtype, call.dtype));
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& tensors, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    Call call(tensors);
    typename Backend::Guard guard(call.input);
    check_grad_output(name, grad_output, {}, call.input);
    check_state(name, state, {contrast::Anchors<float>::size(2 * call.rows)}, call.wide(), call.input);
    Grads<gradients> grads;
    if (!mask[0] && !mask[1]) return grads;
    Tensor all = contrast::among_gradient<Backend>(name, grad_output, state, {call.input, call.target},
                                                   contrast::OtherView{call.rows}, temperature, call.dtype);
    for (int k = 0; k < gradients; k++) {
      if (!mask[k]) continue;
      grads[k] = empty_like(*tensors[k], call.dtype);
      torch::stable::copy_(*grads[k], rows_of(all, k * call.rows, call.rows));
    }
    return grads;
  }
};

// Those of the same label are a vector's positives: L_out of the paper, the mean over the vectors that have any.
struct SupConLoss {
  static constexpr auto name = "sup_con_loss";
  static constexpr auto args = "Tensor input, Tensor target, float temperature=0.1";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool keeps_state = true, loss = true;
  double temperature;

  static SupConLoss make(double temperature) { return {contrast::checked_temperature(name, temperature)}; }

  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& tensors, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    Call call(tensors);
    typename Backend::Guard guard(call.input);
    Tensor labels = call.labels();
    return contrast::among_value<Backend>(name, {call.input}, same(labels), temperature, 0.0, call.dtype,
                                          result_dtype(name, dtype, call.dtype));
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& tensors, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    Call call(tensors);
    typename Backend::Guard guard(call.input);
    check_grad_output(name, grad_output, {}, call.input);
    check_state(name, state, {contrast::Anchors<float>::size(call.input.size(0))}, compute_dtype(call.dtype),
                call.input);
    if (!mask[0]) return {};
    Tensor labels = call.labels(), gradient = empty_like(call.input, call.dtype);
    torch::stable::copy_(gradient, contrast::among_gradient<Backend>(name, grad_output, state, {call.input},
                                                                     same(labels), temperature, call.dtype));
    return {gradient};
  }

 private:
  struct Call {
    Tensor input, target;  // (N, D), (N)
    DType dtype;

    explicit Call(const Inputs& tensors)
        : input(detached(required(name, args, 0, tensors[0]))), target(required(name, args, 1, tensors[1])) {
      dtype = dtype_of(name, "input", input, true);
      Shape shape = shape_of(input);
      if (shape.size() != 2) fail(name, "input of shape (N, D), got ", shape_text(shape));
      expect_one_device(name, input, target);
      check_class_indices(name, "target", dtype_of(name, "target", target, false));
      check_shape(name, "target", shape_of(target), {shape[0]}, "input", shape);
      element_count(name, {shape[0], std::max(shape[0], shape[1])});
    }
    // as kernels read them
    Tensor labels() const { return torch::stable::contiguous(torch::stable::to(target, ScalarType::Long)); }
  };
  static contrast::SameLabel same(const Tensor& labels) {
    return {static_cast<const int64_t*>(labels.const_data_ptr())};
  }
};

using Ops = WrittenOps<ClipLoss, SigLipLoss, NTXentLoss, SupConLoss>;

}  // namespace lossreg
