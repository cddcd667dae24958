#pragma once
// Losses of the overlap of predicted and true regions. Both are 1 - (2 A + s) / (B + s), with A the weighted sum of q y
// and B that of q^p + y^p over the pixels and classes of a region: one pass adds them up, and the gradient in q is
// a y + b p q^(p-1) with two numbers a and b a region (and class), which are the state.
#include "../skeletons/regionwise/call.h"
#include "../skeletons/standalone.h"

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
struct CloseDice : RegionLosses {
  double smooth;
  double* state;
  template <class Team>
  HD void operator()(int64_t region, double* partial, int64_t chunks, const Team& team) const {
    double sums[3] = {0, 0, 0};
    for (int64_t i = team.rank(); i < chunks; i += team.size())
      for (int k = 0; k < 3; k++) sums[k] += partial[i * 3 + k];
    for (int k = 0; k < 3; k++) sums[k] = team.sum(sums[k]);
    if (team.rank() != 0) return;
    auto o = Overlap<double>::of(sums[0], sums[1] + sums[2], smooth);
    put_loss(region, o.loss);
    state[2 * region] = o.a;
    state[2 * region + 1] = o.b;
  }
};
// A class's weight is one over the square of its pixels' number; an absent class takes the largest one.
struct CloseGeneralizedDice : RegionLosses {
  double eps;
  int64_t classes;
  double* state;
  template <class Team>
  HD void operator()(int64_t region, double* partial, int64_t chunks, const Team& team) const {
    double* of_class = state + region * classes * 2;  // weight and A; then a and b
    double largest = 0, shared = 0, whole = 0, absent = 0;
    const auto each = uint32_t(classes), parts = add_parts(partial, uint32_t(chunks), each, team);
    for (uint32_t c = uint32_t(team.rank()); c < each; c += uint32_t(team.size())) {
      double sums[3] = {0, 0, 0};
      for (uint32_t i = 0; i < parts; i++)
        for (int k = 0; k < 3; k++) sums[k] += partial[(int64_t(i) * each + c) * 3 + k];
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
    if (team.rank() == 0) put_loss(region, o.loss);
  }
  // Threads beyond one a class share the chunks: thread by thread, every so many chunks are added up in the place of
  // the first of them. Returns in how many places the sums of a class are then.
  template <class Team>
  HD static uint32_t add_parts(double* partial, uint32_t chunks, uint32_t classes, const Team& team) {
    uint32_t parts = uint32_t(team.size()) / classes;
    parts = parts < 1 ? 1 : parts;
    parts = parts < chunks ? parts : chunks;  // none, where there are no pixels
    for (uint32_t i = uint32_t(team.rank()); i < parts * classes; i += uint32_t(team.size())) {
      const uint32_t part = i / classes;
      double* sums = partial + int64_t(i) * 3;
      for (uint32_t chunk = part + parts; chunk < chunks; chunk += parts)
        for (int k = 0; k < 3; k++) sums[k] += sums[int64_t(chunk - part) * classes * 3 + k];
    }
    team.sync();
    return parts;
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
  CloseDice close(const RegionLosses& losses, const RegionPass<T>&, double* state) const {
    return {losses, smooth, state};
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
  CloseGeneralizedDice close(const RegionLosses& losses, const RegionPass<T>& pass, double* state) const {
    return {losses, eps, pass.regions.classes, state};
  }
};

using Ops = WrittenOps<DiceLoss, GeneralizedDiceLoss>;

}  // namespace lossreg
