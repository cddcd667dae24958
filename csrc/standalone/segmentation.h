#pragma once
// Losses of the overlap of predicted and true regions. Both are 1 - (2 A + s) / (B + s), with A the weighted sum of q y
// and B that of q^p + y^p over the pixels and classes of a region: one pass adds them up, and the gradient in q is
// a y + b p q^(p-1) with two numbers a and b a region (and class), which are the state.
#include "../skeletons/regionwise/call.h"
#include "../skeletons/standalone.h"

namespace lossreg {

// The three sums of a region, or of one class of it, over the region's chunks.
template <class Team>
HD void add_chunks(const double* partial, int64_t chunks, int64_t slots, const Team& team, double (&sums)[3]) {
  for (int k = 0; k < 3; k++) {
    double sum = 0;
    for (int64_t i = team.rank(); i < chunks; i += team.size()) sum += partial[i * slots * 3 + k];
    sums[k] = team.sum(sum);
  }
}
struct CloseDice {
  double smooth;
  const double* partial;
  int64_t chunks;
  double* state;
  Operand losses;
  template <class Team>
  HD void operator()(int64_t region, const Team& team) const {
    double sums[3];
    add_chunks(partial + region * chunks * 3, chunks, 1, team, sums);
    if (team.rank() != 0) return;
    auto o = Overlap<double>::of(sums[0], sums[1] + sums[2], smooth);
    put(losses, region * losses.stride[0], o.loss);
    state[2 * region] = o.a;
    state[2 * region + 1] = o.b;
  }
};
// A class's weight is one over the square of its pixels' number; an absent class takes the largest one.
struct CloseGeneralizedDice {
  double eps;
  const double* partial;
  int64_t chunks, classes;
  double* state;
  Operand losses;
  template <class Team>
  HD void operator()(int64_t region, const Team& team) const {
    double* of_class = state + region * classes * 2;  // weight and A; then a and b
    double largest = 0, shared = 0, whole = 0, absent = 0;
    for (int64_t c = team.rank(); c < classes; c += team.size()) {
      double sums[3] = {0, 0, 0};
      for (int64_t i = 0; i < chunks; i++)
        for (int k = 0; k < 3; k++) sums[k] += partial[((region * chunks + i) * classes + c) * 3 + k];
      double w = sums[2] > 0 ? 1 / (sums[2] * sums[2]) : 0;
      of_class[2 * c] = w;
      largest = w > largest ? w : largest;
      shared += w * sums[0];
      whole += w * (sums[1] + sums[2]);
      // the overlap of an absent class is 0, or NaN where a pixel's class is unknown
      absent += w == 0 ? sums[0] + sums[1] : 0;
    }
    largest = team.max(largest);
    if (largest == 0) largest = 1;
    auto o = Overlap<double>::of(team.sum(shared), team.sum(whole) + largest * team.sum(absent), eps);
    for (int64_t c = team.rank(); c < classes; c += team.size()) {
      double w = of_class[2 * c] == 0 ? largest : of_class[2 * c];
      of_class[2 * c] = w * o.a;
      of_class[2 * c + 1] = w * o.b;
    }
    if (team.rank() == 0) put(losses, region * losses.stride[0], o.loss);
  }
};
// The state times the gradient of the loss, in the type that the pass over the pixels computes in.
template <class T>
struct ScaleState {
  const double* state;
  Operand grad;
  double scale;
  int64_t each;  // numbers a region
  T* out;
  HD void operator()(int64_t i) const {
    out[i] = finite<T>(state[i] * get<double>(grad, i / each * grad.stride[0]) * scale);
  }
};

// What both ops share. Op has name, args, softmax, soft_targets; batch, power(), close().
template <class Op>
struct OverlapLoss {
  static constexpr bool keeps_state = true;
  int64_t ignore_index;
  Reduction reduction;

  const Op& op() const { return static_cast<const Op&>(*this); }
  RegionCall call(const Inputs& inputs) const { return {Op::name, Op::args, inputs, true, Op::soft_targets}; }
  Shape result_shape(const RegionCall& call) const {
    return op().batch || reduction != Reduction::none ? Shape{} : Shape{call.samples()};
  }
  int64_t slots(const RegionCall& call) const { return Op::softmax ? call.classes() : 1; }
  Shape state_shape(const RegionCall& call) const { return {(op().batch ? 1 : call.samples()) * slots(call) * 2}; }
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
    bool reduced = !op().batch && reduction != Reduction::none;
    Tensor losses = reduced ? new_empty(c.input, {regions.count}, DType::float64) : out;
    in_compute_type(c.result, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      RegionPass<T> p = pass<Backend, T>(c, regions);
      Tensor partial = new_empty(c.input, {p.all_chunks() * p.slots * 3}, DType::float64);
      auto* sums = static_cast<double*>(partial.mutable_data_ptr());
      with_kind(c.soft, p.power, [&](auto soft, auto mode) {
        Backend::Regions::template sums<T, Op::softmax, soft, mode>(Op::name, p, sums);
      });
      auto close = op().close(p, sums, static_cast<double*>(state.mutable_data_ptr()), operand_of(losses));
      Backend::teams(regions.count, p.chunks * p.slots, close);
    });
    if (reduced)
      Backend::template total<1>(out, regions.count, 1, AddLoss{static_cast<const double*>(losses.const_data_ptr())},
                                 WriteLoss{operand_of(out), scale(c)});
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
      Tensor coefficients = new_empty(c.input, state_shape(c), dtype_of_storage<T>);
      auto* k = static_cast<T*>(coefficients.mutable_data_ptr());
      Backend::each(state_shape(c)[0], 1,
                    ScaleState<T>{static_cast<const double*>(state.const_data_ptr()), operand_of(grad_output), scale(c),
                                  2 * p.slots, k});
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

  template <class Use>
  static void with_kind(bool soft, const Power& power, Use use) {
    if constexpr (Op::softmax) {
      use(std::false_type{}, std::integral_constant<int, 0>{});
    } else {
      with_mode(power, [&](auto mode) {
        if (soft) use(std::true_type{}, mode);
        else use(std::false_type{}, mode);
      });
    }
  }
};

struct DiceLoss : OverlapLoss<DiceLoss> {
  static constexpr auto name = "dice_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float p=1.0, float smooth=1.0, Tensor? weight=None, int ignore_index=-100, "
      "bool batch=False, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 2;
  static constexpr bool softmax = false, soft_targets = true;
  double p, smooth;
  bool batch;

  static DiceLoss make(double p, double smooth, int64_t ignore_index, bool batch, Reduction reduction) {
    expect(p >= 1 && p < INFINITY, name, "p >= 1", p);
    expect(smooth >= 0 && smooth < INFINITY, name, "smooth >= 0", smooth);
    return {{ignore_index, reduction}, p, smooth, batch};
  }
  Power power() const { return {p}; }
  template <class T>
  CloseDice close(const RegionPass<T>& pass, const double* sums, double* state, Operand losses) const {
    return {smooth, sums, pass.chunks, state, losses};
  }
};

struct GeneralizedDiceLoss : OverlapLoss<GeneralizedDiceLoss> {
  static constexpr auto name = "generalized_dice_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float eps=1e-5, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool softmax = true, soft_targets = false, batch = false;
  double eps;

  static GeneralizedDiceLoss make(double eps, int64_t ignore_index, Reduction reduction) {
    expect(eps >= 0 && eps < INFINITY, name, "eps >= 0", eps);
    return {{ignore_index, reduction}, eps};
  }
  Power power() const { return {}; }
  template <class T>
  CloseGeneralizedDice close(const RegionPass<T>& pass, const double* sums, double* state, Operand losses) const {
    return {eps, sums, pass.chunks, pass.regions.classes, state, losses};
  }
};

using Ops = WrittenOps<DiceLoss, GeneralizedDiceLoss>;

}  // namespace lossreg
