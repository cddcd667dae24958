#pragma once
// The loss of an RNN transducer.
#include "transducer/kernels.h"

namespace lossreg {

// -log P(targets | logits) of the RNN transducer, over all alignments; the logits are normalised here.
struct RNNTLoss {
  static constexpr auto name = "rnnt_loss";
  static constexpr auto args =
      "Tensor logits, Tensor targets, Tensor logit_lengths, Tensor target_lengths, int blank=-1, float clamp=-1.0, "
      "str reduction=\"mean\"";
  static constexpr int inputs = 4, gradients = 1;
  static constexpr bool keeps_state = true;
  int64_t blank;
  double clamp;

  static RNNTLoss make(int64_t blank, double clamp, Reduction) {
    expect(clamp == clamp, name, "clamp that is a number", clamp);
    return {blank, clamp};
  }

  // The tensors of one call, checked against each other.
  struct Call {
    Tensor logits, targets, logit_lengths, target_lengths;
    DType dtype;
    transducer::Batch batch;
  };
  template <class Backend>
  Call parse(const Inputs& x, std::optional<ScalarType> wanted) const {
    Call c{required(name, args, 0, x[0]), required(name, args, 1, x[1]),         required(name, args, 2, x[2]),
           required(name, args, 3, x[3]), dtype_of(name, "logits", *x[0], true), {}};
    DType target_dtype = dtype_of(name, "targets", c.targets, false);
    expect_one_device(name, c.logits, c.targets);
    Shape shape = shape_of(c.logits);
    if (shape.size() != 4 || shape[2] == 0) fail(name, "logits of shape (N, T, U + 1, V), got ", shape_text(shape));
    transducer::Batch& b = c.batch;
    b.samples = shape[0], b.steps = shape[1], b.width = shape[2], b.classes = shape[3];
    check_classes(name, "logits", shape, b.classes);
    if (blank < -b.classes || blank >= b.classes)
      fail(name, "blank in [", -b.classes, ", ", b.classes, "), got ", blank);
    b.blank = blank < 0 ? blank + b.classes : blank;
    check_class_indices(name, "targets", target_dtype);
    check_shape(name, "targets", shape_of(c.targets), {b.samples, b.width - 1}, "logits", shape);
    lattice::check_lattice_sizes(name, b.steps, b.classes, b.width - 1);
    element_count(name, shape);
    element_count(name, {4, b.samples, b.steps, b.width});
    auto lengths = [&](const char* argument, Tensor& t) {
      return lattice::lengths_of<Backend>(name, argument, t, b.samples, "logits", c.logits);
    };
    b.logit_lengths = lengths("logit_lengths", c.logit_lengths);
    b.target_lengths = lengths("target_lengths", c.target_lengths);
    lattice::widen_scores(c.logits, c.dtype, wanted);
    b.logits = operand_of(c.logits);
    b.targets = operand_of(c.targets);
    return c;
  }
  // On the CPU only.
  static void check_values(const transducer::Batch& b) {
    for (int64_t n = 0; n < b.samples; n++) {
      const int64_t steps = get<int64_t>(b.logit_lengths, n * b.logit_lengths.stride[0]);
      const int64_t labels = get<int64_t>(b.target_lengths, n * b.target_lengths.stride[0]);
      lattice::check_length(name, "logit_lengths", steps, b.steps);
      lattice::check_length(name, "target_lengths", labels, b.width - 1);
      for (int64_t u = 0; u < labels; u++)
        if (b.label(n, u) < 0)
          fail(name, "a class index in [0, ", b.classes, "), got ",
               get<int64_t>(b.targets, n * b.targets.stride[0] + u * b.targets.stride[1]));
    }
  }

  // About how many elements a step of one sample, and a sample's lattice, touches.
  static int64_t step_cost(const transducer::Batch& b) { return 2 * b.width * b.classes; }
  static int64_t lattice_cost(const transducer::Batch& b) { return 8 * b.width * b.steps; }

  template <class Backend>
  std::pair<Tensor, std::optional<Tensor>> run(const Inputs& x, std::optional<Reduction> reduction,
                                               std::optional<ScalarType> dtype, bool keep) const {
    Call c = parse<Backend>(x, dtype);
    const transducer::Batch& b = c.batch;
    typename Backend::Guard guard(c.logits);
    if constexpr (Backend::checks_values) check_values(b);
    bool reduced = reduction != Reduction::none;
    DType out_dtype = result_dtype(name, dtype, c.dtype);
    Tensor out = new_empty(c.logits, reduced ? Shape{} : Shape{b.samples}, out_dtype);
    Tensor losses = reduced ? new_empty(c.logits, {b.samples}, DType::float64) : out;
    Tensor kept = new_empty(c.logits, {(keep ? 4 : 1) * b.nodes()}, DType::float64);
    auto state = transducer::State::of(static_cast<double*>(kept.mutable_data_ptr()), b.nodes(), keep);
    lattice::with_score_storage(c.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      using T = lattice::Compute<S>;
      Tensor memory = new_empty(c.logits, {2 * b.nodes()}, dtype_of_storage<T>);
      auto* blank = static_cast<T*>(memory.mutable_data_ptr());
      transducer::Ways<T> ways{blank, blank + b.nodes()};
      constexpr int L = kPackStrip<Backend, S>;
      Backend::teams(b.samples * b.steps, step_cost(b), transducer::Normalise<S, L>{b, state, ways});
      Backend::teams((keep ? 2 : 1) * b.samples, lattice_cost(b),
                     transducer::Lattice<T>{b, state, ways, operand_of(losses)});
    });
    if (reduced)
      Backend::template total<1>(
          out, b.samples, 1, AddLoss{static_cast<const double*>(losses.const_data_ptr())},
          WriteLoss{operand_of(out), reduction == Reduction::mean ? 1.0 / double(b.samples) : 1.0});
    return {out, keep ? std::optional(kept) : std::nullopt};
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
    const transducer::Batch& b = c.batch;
    typename Backend::Guard guard(c.logits);
    check_grad_output(name, grad_output, reduction != Reduction::none ? Shape{} : Shape{b.samples}, c.logits);
    check_state(name, state, {4 * b.nodes()}, DType::float64, c.logits);
    if (!mask[0]) return {};

    Tensor grad = empty_like(c.logits, c.dtype);
    auto kept = transducer::State::of(static_cast<double*>(state.mutable_data_ptr()), b.nodes(), true);
    lattice::with_score_storage(c.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      constexpr int L = kPackStrip<Backend, S>;
      using Slopes = transducer::Slopes<S, L>;
      double divisor = reduction == Reduction::mean ? double(b.samples) : 1.0;
      auto bound = typename Slopes::T(clamp > 0 ? clamp : INFINITY);
      Slopes slopes{b, kept, operand_of(grad_output), operand_of(grad), divisor, bound};
      Backend::teams(b.samples * b.steps, 2 * step_cost(b), slopes);
    });
    return {grad.scalar_type() == own ? grad : torch::stable::to(grad, own)};
  }
};

using Ops = WrittenOps<RNNTLoss>;

}  // namespace lossreg
