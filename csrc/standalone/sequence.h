#pragma once
// Losses over sequences.
#include "shared/ctc.h"

namespace lossreg {

// -log P(targets | log_probs), over all alignments.
struct CTCLoss {
  static constexpr auto name = "ctc_loss";
  static constexpr auto args =
      "Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank=0, "
      "str reduction=\"mean\", bool zero_infinity=False";
  static constexpr int inputs = 4, gradients = 1;
  static constexpr bool keeps_state = true;
  int64_t blank;
  bool zero_infinity;

  static CTCLoss make(int64_t blank, Reduction, bool zero_infinity) { return {blank, zero_infinity}; }

  // The tensors of one call, checked against each other.
  struct Call {
    Tensor log_probs, targets, input_lengths, target_lengths, ends;
    DType dtype;
    ctc::Batch batch;
  };
  template <class Backend>
  Call parse(const Inputs& x, std::optional<ScalarType> wanted) const {
    Call c{required(name, args, 0, x[0]),
           required(name, args, 1, x[1]),
           required(name, args, 2, x[2]),
           required(name, args, 3, x[3]),
           Tensor(),
           dtype_of(name, "log_probs", *x[0], true),
           {}};
    DType target_dtype = dtype_of(name, "targets", c.targets, false);
    expect_one_device(name, c.log_probs, c.targets);
    Shape shape = shape_of(c.log_probs), labels = shape_of(c.targets);
    if (shape.size() != 2 && shape.size() != 3)
      fail(name, "log_probs of shape (T, N, C) or (T, C), got ", shape_text(shape));
    bool batched = shape.size() == 3;
    ctc::Batch& b = c.batch;
    b.steps = shape[0], b.samples = batched ? shape[1] : 1, b.classes = shape.back(), b.blank = blank;
    if (blank < 0 || blank >= b.classes) fail(name, "blank in [0, ", b.classes, "), got ", blank);
    check_class_indices(name, "targets", target_dtype);
    bool rows = labels.size() == 2 && labels[0] == b.samples;
    if (!rows && labels.size() != 1)
      fail(name, "targets of shape [", b.samples, ", S] or [sum of target_lengths] for log_probs of shape ",
           shape_text(shape), ", got ", shape_text(labels));
    b.labels = labels.back();
    lattice::check_lattice_sizes(name, b.steps, b.classes, b.labels);
    // as many labels a sample as the running sum of BoundedLengths may have
    element_count(name, {16, b.steps + 1, std::max<int64_t>(1, b.samples), b.labels + ctc::kBefore + 1});
    auto lengths = [&](const char* argument, Tensor& t) {
      return lattice::lengths_of<Backend>(name, argument, t, b.samples, "log_probs", c.log_probs);
    };
    b.input_lengths = lengths("input_lengths", c.input_lengths);
    b.target_lengths = lengths("target_lengths", c.target_lengths);

    lattice::widen_scores(c.log_probs, c.dtype, wanted);
    b.log_probs = by_step(c.log_probs);
    b.targets = operand_of(c.targets);
    b.ends = nullptr;
    if (!rows) {
      b.targets.stride[1] = b.targets.stride[0];
      typename Backend::Guard guard(c.log_probs);
      Tensor counts = new_empty(c.log_probs, {b.samples}, DType::int64);
      Backend::each(b.samples, 1, ctc::BoundedLengths{b, static_cast<int64_t*>(counts.mutable_data_ptr())});
      c.ends = call_aten("aten::cumsum", "", counts, int64_t(0), std::optional(ScalarType::Long))[0];
      b.ends = static_cast<const int64_t*>(c.ends.const_data_ptr());
    }
    return c;
  }
  // Of the shape (T, N, C), or of (T, C), where the stride from sample to sample is 0.
  static Operand by_step(const Tensor& t) {
    Operand o = operand_of(t);
    if (t.dim() == 2) o.stride[2] = std::exchange(o.stride[1], 0);
    return o;
  }
  // On the CPU only.
  static void check_values(const ctc::Batch& b) {
    int64_t sum = 0;
    for (int64_t n = 0; n < b.samples; n++) {
      lattice::check_length(name, "input_lengths", b.input_length(n), b.steps);
      lattice::check_length(name, "target_lengths", b.target_length(n), b.labels);
      sum += b.target_length(n);
    }
    if (b.ends && sum != b.labels) fail(name, "target_lengths that sum to ", b.labels, " targets, got ", sum);
    for (int64_t n = 0; n < b.samples; n++) {
      ctc::Sample x = b.sample(n);
      for (int64_t k = 0; k < x.labels; k++)
        if (!b.is_class(b.label(x, k))) fail(name, "a class index in [0, ", b.classes, "), got ", b.label(x, k));
    }
  }

  // A probability is at most 1. So a loss that is further below 0 than rounding takes it comes from raw scores.
  static void look_at_losses(const ctc::Batch& b, const double* loss) {
    for (int64_t n = 0; n < b.samples; n++)
      if (loss[n] < -0.02 * double(b.steps))
        return warn_once<CTCLoss>("log_probs to be logarithms of probabilities, as of log_softmax, got a loss of ",
                                  loss[n]);
  }

  // Arrays of one row a sample.
  template <class T>
  static T* rows(const Call& c, std::vector<Tensor>& scratch, int64_t arrays) {
    constexpr DType dtype = std::is_same_v<T, int32_t> ? DType::int32 : dtype_of_storage<T>;
    scratch.push_back(new_empty(c.log_probs, {arrays * c.batch.room()}, dtype));
    return static_cast<T*>(scratch.back().mutable_data_ptr());
  }
  template <class S>
  static ctc::Lattice<S> lattice(const Call& c, std::vector<Tensor>& scratch) {
    using T = ctc::Compute<S>;
    return {c.batch, rows<int32_t>(c, scratch, 1), rows<double>(c, scratch, 1), rows<T>(c, scratch, 1)};
  }
  // About how many elements one sample's pass touches.
  static int64_t cost(const ctc::Batch& b) {
    return b.steps * 8 * std::max<int64_t>(1, b.room() / std::max<int64_t>(1, b.samples));
  }

  template <class Backend>
  std::pair<Tensor, std::optional<Tensor>> run(const Inputs& x, std::optional<Reduction> reduction,
                                               std::optional<ScalarType> dtype, bool keep) const {
    Call c = parse<Backend>(x, dtype);
    const ctc::Batch& b = c.batch;
    typename Backend::Guard guard(c.log_probs);
    if constexpr (Backend::checks_values) check_values(b);
    bool reduced = reduction != Reduction::none;
    DType out_dtype = result_dtype(name, dtype, c.dtype);
    Tensor out = new_empty(c.log_probs, reduced || c.log_probs.dim() == 2 ? Shape{} : Shape{b.samples}, out_dtype);
    Tensor state = new_empty(c.log_probs, {(keep ? b.steps + 1 : 2) * b.room()}, DType::float64);
    Tensor losses = new_empty(c.log_probs, {b.samples}, DType::float64);
    auto* loss = static_cast<double*>(losses.mutable_data_ptr());
    lattice::with_score_storage(c.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      std::vector<Tensor> scratch;
      auto* alpha = static_cast<double*>(state.mutable_data_ptr());
      Backend::teams(b.samples, cost(b), ctc::Forward<S>{lattice<S>(c, scratch), alpha, keep, loss});
    });
    if constexpr (Backend::checks_values) look_at_losses(b, loss);
    ctc::OneLoss one{{out.mutable_data_ptr(), out_dtype}, loss, zero_infinity};
    ctc::LossSum sum{one, b, reduction == Reduction::mean};
    if (reduced) Backend::template total<1>(out, b.samples, 1, sum, sum);
    else Backend::each(b.samples, 1, one);
    return {out, keep ? std::optional(state) : std::nullopt};
  }
  template <class Backend>
  Tensor value(const Inputs& x, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return run<Backend>(x, reduction, dtype, false).first;
  }
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& x, std::optional<Reduction> reduction,
                                     std::optional<ScalarType> dtype) const {
    auto [out, state] = run<Backend>(x, reduction, dtype, true);
    return {out, *state};
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& x,
                        std::optional<Reduction> reduction, const std::vector<bool>& mask) const {
    ScalarType own = required(name, args, 0, x[0]).scalar_type();
    Call c = parse<Backend>(x, grad_output.scalar_type());
    const ctc::Batch& b = c.batch;
    typename Backend::Guard guard(c.log_probs);
    bool one = reduction != Reduction::none || c.log_probs.dim() == 2;
    Shape expected = one ? Shape{} : Shape{b.samples};
    check_grad_output(name, grad_output, expected, c.log_probs);
    check_state(name, state, {(b.steps + 1) * b.room()}, DType::float64, c.log_probs);
    if (!mask[0]) return {};

    Tensor grad = empty_like(c.log_probs, c.dtype);
    Operand grads = by_step(grad), given = operand_of(grad_output);
    lattice::with_score_storage(c.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      using T = ctc::Compute<S>;
      std::vector<Tensor> scratch;
      const auto* alpha = static_cast<const double*>(state.const_data_ptr());
      Tensor scales = new_empty(c.log_probs, {b.steps * b.samples}, dtype_of_storage<T>);
      auto* scale = static_cast<T*>(scales.mutable_data_ptr());
      Backend::teams(b.samples, b.steps, ctc::Scales<S>{b, alpha, given, reduction == Reduction::mean, scale});
      auto view = [](const Operand& o) { return View{o.data, o.dtype, {o.stride[0], o.stride[1], o.stride[2]}}; };
      View views[] = {view(b.log_probs), {scale, dtype_of_storage<T>, {b.samples, 1, 0}}, view(grads)};
      auto everywhere = make_iteration<3>(name, {b.steps, b.samples, b.classes}, views);
      Backend::Pointwise::template map<T, 2, 1>(everywhere, ctc::Unlabelled{});
      Backend::teams(
          b.samples, cost(b),
          ctc::Labelled<S>{lattice<S>(c, scratch), alpha, scale, rows<double>(c, scratch, 2), rows<T>(c, scratch, 1),
                           rows<int32_t>(c, scratch, 1), rows<int32_t>(c, scratch, 1), grads});
    });
    return {grad.scalar_type() == own ? grad : torch::stable::to(grad, own)};
  }
};

using Ops = WrittenOps<CTCLoss>;

}  // namespace lossreg
