#pragma once
// Losses of the overlap of predicted and true regions. All are functions of three weighted sums over the pixels and
// classes of a region, of q y, q^p and y^p (Tversky in regionwise/formula.h): one pass adds them up, and the gradient
// in q is a y + b p q^(p-1), where a and b, of a region or of a class of it, are the state.
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
// Dice's coefficient (2 A + s) / (Q + Y + s), as an index.
HD Tversky dice_index(double smooth) {
  return {0.5, 0.5, 0.5 * smooth};
}
struct CloseOverlap : RegionLosses {
  Tversky index;
  double* state;
  template <class Team>
  HD void operator()(int64_t region, double* partial, int64_t chunks, const Team& team) const {
    double sums[3] = {0, 0, 0};
    for (int64_t i = team.rank(); i < chunks; i += team.size())
      for (int k = 0; k < 3; k++) sums[k] += partial[i * 3 + k];
    for (int k = 0; k < 3; k++) sums[k] = team.sum(sums[k]);
    if (team.rank() != 0) return;
    auto o = Overlap<double>::of(sums[0], sums[1], sums[2], index);
    put_loss(region, o.loss);
    double* slopes = state + region * OverlapSlopes<double>::count;
    slopes[0] = o.slopes.a;
    slopes[1] = o.slopes.q;
    slopes[2] = o.slopes.y;
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
    // Q and Y count alike, so that their sum is all that is asked for
    auto o = Overlap<double>::of(team.sum(shared), team.sum(whole) + largest * team.sum(absent), 0.0, dice_index(eps));
    for (int64_t c = team.rank(); c < classes; c += team.size()) {
      double w = of_class[2 * c] == 0 ? largest : of_class[2 * c];
      of_class[2 * c] = w * o.slopes.a;
      of_class[2 * c + 1] = w * o.slopes.q;
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

// What all ops share. Op has name, args, softmax, soft_targets; batch, power(), close().
template <class Op>
struct OverlapLoss {
  static constexpr bool keeps_state = true;
  int64_t ignore_index;
  Reduction reduction;

  const Op& op() const { return static_cast<const Op&>(*this); }
  Power power() const { return {}; }  // 1, where Op has no other
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

inline double checked_smooth(const char* name, double smooth) {
  expect(smooth >= 0 && smooth < INFINITY, name, "smooth >= 0", smooth);
  return smooth;
}

// What the losses of a sigmoid share: Op has the index, and unless that is 1, the power p.
template <class Op>
struct SigmoidOverlap : OverlapLoss<Op> {
  static constexpr int inputs = 3, gradients = 2;
  static constexpr bool softmax = false, soft_targets = true;
  Tversky index;
  bool batch;

  template <class T>
  CloseOverlap close(const RegionLosses& losses, const RegionPass<T>&, double* state) const {
    return {losses, index, state};
  }
};

struct DiceLoss : SigmoidOverlap<DiceLoss> {
  static constexpr auto name = "dice_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float p=1.0, float smooth=1.0, Tensor? weight=None, int ignore_index=-100, "
      "bool batch=False, str reduction=\"mean\"";
  double p;

  static DiceLoss make(double p, double smooth, int64_t ignore_index, bool batch, Reduction reduction) {
    expect(p >= 1 && p < INFINITY, name, "p >= 1", p);
    return {{{ignore_index, reduction}, dice_index(checked_smooth(name, smooth)), batch}, p};
  }
  Power power() const { return {p}; }
};

// Salehi et al., Tversky loss function for image segmentation, arXiv 1706.05721; with gamma, Abraham and Khan's focal
// Tversky loss, arXiv 1810.07842.
struct TverskyLoss : SigmoidOverlap<TverskyLoss> {
  static constexpr auto name = "tversky_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float alpha=0.5, float beta=0.5, float gamma=1.0, float smooth=1.0, "
      "Tensor? weight=None, int ignore_index=-100, bool batch=False, str reduction=\"mean\"";

  static TverskyLoss make(double alpha, double beta, double gamma, double smooth, int64_t ignore_index, bool batch,
                          Reduction reduction) {
    expect(alpha >= 0 && alpha < INFINITY, name, "alpha >= 0", alpha);
    expect(beta >= 0 && beta < INFINITY, name, "beta >= 0", beta);
    expect(gamma >= 0 && gamma < INFINITY, name, "gamma >= 0", gamma);
    return {{{ignore_index, reduction}, {alpha, beta, checked_smooth(name, smooth), gamma}, batch}};
  }
};

// 1 - (A + s) / (Q + Y - A + s): of the intersection and the union.
struct JaccardLoss : SigmoidOverlap<JaccardLoss> {
  static constexpr auto name = "jaccard_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float smooth=1.0, Tensor? weight=None, int ignore_index=-100, bool batch=False, "
      "str reduction=\"mean\"";

  static JaccardLoss make(double smooth, int64_t ignore_index, bool batch, Reduction reduction) {
    return {{{ignore_index, reduction}, {1, 1, checked_smooth(name, smooth)}, batch}};
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
  template <class T>
  CloseGeneralizedDice close(const RegionLosses& losses, const RegionPass<T>& pass, double* state) const {
    return {losses, eps, pass.regions.classes, state};
  }
};

using Ops = WrittenOps<DiceLoss, TverskyLoss, JaccardLoss, GeneralizedDiceLoss>;

}  // namespace lossreg
