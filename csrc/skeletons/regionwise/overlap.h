#pragma once
// Losses of the overlap of predicted and true regions, all functions of three weighted sums over the pixels and classes
// of a region: A of q y, Q of q^p and Y of y^p, where q is what is predicted and y the target. One pass adds them up,
// and the gradient in q is a y + b p q^(p-1), where a and b, of a region or of a class of it, are the state.
//
// A formula of RegionOps is a struct F : RegionFormula<F> with name, args, make() and
//   HD Overlap<double> overlap(double shared, double of_q, double of_y) const
// the loss of a region, and its slopes in A, Q and Y, for q = sigmoid(input) and p = 1: the true positives are A, the
// false ones Q - A, the false negatives Y - A. Its args are (Tensor input, Tensor target, options, Tensor? weight=None,
// int ignore_index=-100, bool batch=False, str reduction="mean"), and make() returns
//   {{{ignore_index, reduction}, batch}, fields ...}
#include "../standalone.h"
#include "call.h"

namespace lossreg {

// Where the losses of regions go: to the result, or into its mean or sum.
struct RegionLosses {
  Operand result;
  bool reduced;
  double* losses;  // one a region, where they are added up
  double scale;    // of their sum

  HD void put_loss(int64_t region, double loss) const {
    if (reduced) losses[region] = loss;
    else put(result, region * result.stride[0], loss);
  }
  template <class Team>
  HD void finish(int64_t regions, const Team& team) const {
    if (!reduced) return;
    double sum = 0;
    for (int64_t i = team.rank(); i < regions; i += team.size()) sum += losses[i];
    sum = team.sum(sum);
    if (team.rank() == 0) put(result, 0, sum * scale);
  }
};
// F: its overlap() is asked for the loss of a region's sums.
template <class F>
struct CloseOverlap : RegionLosses {
  F formula;
  double* state;
  template <class Team>
  HD void operator()(int64_t region, double* partial, int64_t chunks, const Team& team) const {
    double sums[3] = {0, 0, 0};
    for (int64_t i = team.rank(); i < chunks; i += team.size())
      for (int k = 0; k < 3; k++) sums[k] += partial[i * 3 + k];
    for (int k = 0; k < 3; k++) sums[k] = team.sum(sums[k]);
    if (team.rank() != 0) return;
    const Overlap<double> o = formula.overlap(sums[0], sums[1], sums[2]);
    put_loss(region, o.loss);
    double* slopes = state + region * OverlapSlopes<double>::count;
    slopes[0] = o.slopes.a;
    slopes[1] = o.slopes.q;
    slopes[2] = o.slopes.y;
  }
};
// The state times the gradient of the loss, in the type that the pass over the pixels computes in.
template <class T>
struct StateCoefficients {
  const double* state;
  Operand grad;
  double scale;
  HD double factor(int64_t region) const { return get<double>(grad, region * grad.stride[0]) * scale; }
  HD T operator()(double factor, int64_t i) const { return finite<T>(state[i] * factor); }
};

// What all ops share. Op has name, args, softmax, soft_targets; batch, close(); with has_power, power().
template <class Op>
struct OverlapLoss {
  static constexpr bool keeps_state = true, has_power = false;
  int64_t ignore_index;
  Reduction reduction;

  const Op& op() const { return static_cast<const Op&>(*this); }
  Power power() const { return {}; }
  RegionCall call(const Inputs& inputs) const { return {Op::name, Op::args, inputs, true, Op::soft_targets}; }
  Shape result_shape(const RegionCall& call) const {
    return op().batch || reduction != Reduction::none ? Shape{} : Shape{call.samples()};
  }
  int64_t slots(const RegionCall& call) const { return Op::softmax ? call.classes() : 1; }
  Shape state_shape(const RegionCall& call) const {
    constexpr int numbers = Op::softmax ? 2 : OverlapSlopes<double>::count;
    return {(op().batch ? 1 : call.samples()) * slots(call) * numbers};
  }
  // A batch that is one region has one loss, and there is nothing to take the mean of.
  double scale(const RegionCall& call) const {
    return reduction == Reduction::mean && !op().batch ? 1.0 / double(call.samples()) : 1.0;
  }

  template <class Backend, class T>
  RegionPass<T> pass(RegionCall& call, const Regions& regions) const {
    RegionPass<T> p;
    p.regions = regions;
    p.power = op().power();
    p.slots = slots(call);
    p.divide(Backend::Regions::template chunk_pixels<T>(regions));
    if (call.weight) {
      call.weight = torch::stable::contiguous(torch::stable::to(*call.weight, scalar_type(dtype_of_storage<T>)));
      p.weight = static_cast<const T*>(call.weight->const_data_ptr());
    }
    return p;
  }

  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    RegionCall c = call(inputs);
    typename Backend::Guard guard(c.input);
    DType out_dtype = result_dtype(Op::name, dtype, c.result);
    Tensor out = new_empty(c.input, result_shape(c), out_dtype);
    Tensor state = new_empty(c.input, state_shape(c), DType::float64);
    Regions regions = c.regions(op().batch, ignore_index);
    RegionLosses losses{operand_of(out), !op().batch && reduction != Reduction::none, nullptr, scale(c)};
    std::optional<Tensor> of_region;
    if (losses.reduced) {
      of_region = new_empty(c.input, {regions.count}, DType::float64);
      losses.losses = static_cast<double*>(of_region->mutable_data_ptr());
    }
    in_compute_type(c.result, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      RegionPass<T> p = pass<Backend, T>(c, regions);
      auto close = op().close(losses, p, static_cast<double*>(state.mutable_data_ptr()));
      with_kind(c.soft, p.power, [&](auto soft, auto mode) {
        Backend::Regions::template sums<T, Op::softmax, soft, mode>(Op::name, c.input, p, close);
      });
    });
    return {out, state};
  }

  template <class Backend>
  auto grad(const Tensor& grad_output, const Tensor& state, Inputs inputs, std::optional<Reduction>,
            const std::vector<bool>& mask) const {
    RegionCall c = call(inputs);
    typename Backend::Guard guard(c.input);
    DType grad_dtype = check_grad_output(Op::name, grad_output, result_shape(c), c.input);
    check_state(Op::name, state, state_shape(c), DType::float64, c.input);
    if (Op::gradients == 2) check_no_gradient_beside_indices(Op::name, "target", mask.back(), !c.soft);
    // the pass always writes the gradient in the input
    Tensor grad_input = empty_like(c.input, c.input_dtype);
    Grads<Op::gradients> grads;
    if (Op::gradients == 2 && mask.back()) grads.back() = empty_like(c.target, c.target_dtype);
    Tensor* grad_target = Op::gradients == 2 && grads.back() ? &*grads.back() : nullptr;
    Regions regions = c.regions(op().batch, ignore_index, &grad_input, grad_target);
    in_compute_type(c.result, grad_dtype, [&](auto zero) {
      using T = decltype(zero);
      RegionPass<T> p = pass<Backend, T>(c, regions);
      StateCoefficients<T> k{static_cast<const double*>(state.const_data_ptr()), operand_of(grad_output), scale(c)};
      if constexpr (Op::softmax) {
        Backend::Regions::template grad_softmax<T, false>(p, k, nullptr);
      } else {
        with_kind(c.soft, p.power,
                  [&](auto soft, auto mode) { Backend::Regions::template grad_sigmoid<T, soft, mode>(p, k); });
      }
    });
    if (mask[0]) grads[0] = grad_input;
    return grads;
  }

  // use(soft, mode) with what the target holds, and the mode of the power: constants of the types.
  template <class Use>
  static void with_kind(bool soft, const Power& power, Use use) {
    auto with_target = [&](auto mode) {
      if constexpr (Op::soft_targets) {
        if (soft) return use(std::true_type{}, mode);
      }
      use(std::false_type{}, mode);
    };
    if constexpr (Op::has_power) with_mode(power, with_target);
    else with_target(std::integral_constant<int, 0>{});
  }
};

// What the losses of a sigmoid share. CloseOverlap asks the loss of what formula() returns: Op itself, if Op says
// nothing else.
template <class Op>
struct RegionFormula : OverlapLoss<Op> {
  static constexpr int inputs = 3, gradients = 2;
  static constexpr bool softmax = false, soft_targets = true;
  bool batch;

  const Op& formula() const { return this->op(); }
  template <class T>
  auto close(const RegionLosses& losses, const RegionPass<T>&, double* state) const {
    using F = std::decay_t<decltype(this->op().formula())>;
    return CloseOverlap<F>{losses, this->op().formula(), state};
  }
};
template <class... F>
using RegionOps = WrittenOps<F...>;

}  // namespace lossreg
