#pragma once
// Losses of a linear layer's scores. The (N, C) scores, or (N, C, d1 ... dk), exist for one chunk of rows at a time.
#include "linear/log_probs.h"
#include "linear/losses.h"

namespace lossreg {
namespace linear {

// What a mean divides by: how many losses count, or their class weights.
struct CountLosses {
  Operand target, weight;
  int64_t ignore_index, classes;
  HD void operator()(int64_t i, double (&sums)[1]) const {
    const int64_t y = get<int64_t>(target, i * target.stride[0]);
    if (y == ignore_index || y < 0 || y >= classes) return;
    sums[0] += weight.data ? get<double>(weight, y * weight.stride[0]) : 1.0;
  }
};
// The gradient of each loss in their mean. Where none counts there is none.
struct WriteShare {
  Operand share;
  HD void operator()(const double (&sums)[1]) const { put(share, 0, sums[0] == 0 ? 0.0 : 1.0 / sums[0]); }
};

// x[0], a gradient of the sum of losses, for a result that is the sum divided by x[2] and has the gradient x[1]. Where
// no row counts, x[2] is 0, and so is the gradient.
struct Scale {
  template <class T>
  HD void operator()(const T (&x)[3], T (&y)[1]) const {
    y[0] = x[2] == T(0) ? T(0) : x[0] / x[2] * x[1];
  }
};

// The sums of the rows' losses and of the chunks' normalisers; there are no more chunks than rows.
struct SumLosses {
  Operand losses, normalisers;
  int64_t chunks;
  HD void operator()(int64_t i, double (&sums)[2]) const {
    sums[0] += get<double>(losses, i);
    if (i < chunks) sums[1] += get<double>(normalisers, i);
  }
};
struct FinishLoss {
  Operand result, normaliser;  // no result: it is not reduced
  bool mean;
  HD void operator()(const double (&sums)[2]) const {
    if (result.data) put(result, 0, mean ? sums[0] / sums[1] : sums[0]);
    // where no row counts there is no gradient, whatever that of the sum is
    put(normaliser, 0, mean || sums[1] == 0 ? sums[1] : 1.0);
  }
};

}  // namespace linear

// Scores and their gradient are of the operands' dtype, as in F.linear; losses, and sums over rows, are float32 at
// least.
struct LinearCrossEntropy {
  using Scores = ScoreLoss;
  static constexpr auto name = "linear_cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias=None, Tensor? weight=None, "
      "int ignore_index=-100, str reduction=\"mean\", float label_smoothing=0.0, float softcap=0.0, float z_loss=0.0";
  static constexpr int inputs = 5, gradients = 5;
  static constexpr bool keeps_state = true, forward_mask = true;
  BoundedScoreLoss of_scores;

  static LinearCrossEntropy make(int64_t ignore_index, Reduction, double label_smoothing, double softcap,
                                 double z_loss) {
    ScoreLoss::check_smoothing(name, label_smoothing);
    return {{{ScoreLoss{{{ignore_index}, label_smoothing}}, z_loss}, softcap}};
  }

  // Computing the scores again in the backward pass would be a fourth matrix product. A reduced loss does without: its
  // gradient is a number times that of the sum, which the forward pass computes while it has the scores. The gradients
  // in class probabilities and weights are as large as all scores, or rare: those calls, too, start again.
  static bool kept(std::optional<Reduction> reduction, const std::vector<bool>& mask) {
    using namespace linear;
    return reduction != Reduction::none && (mask[kInputAt] || mask[kLinearWeightAt] || mask[kLinearBiasAt]) &&
           !mask[kTargetAt] && !mask[kWeightAt];
  }

  template <class Backend>
  Tensor value(const Inputs& tensors, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return std::get<0>(forward<Backend>(tensors, reduction, dtype, std::vector<bool>(gradients)));
  }

  // The state: the gradients of the sum of losses where they are kept, and the mean's denominator.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& tensors, std::optional<Reduction> reduction,
                                     std::optional<ScalarType> dtype, const std::vector<bool>& mask) const {
    using namespace linear;
    Call<LinearCrossEntropy> call(tensors);
    check(call);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.result), loss_dtype = compute_dtype(out_dtype, call.result);
    bool keep = kept(reduction, mask), reduced = reduction != Reduction::none;
    GradientSums sums(call, keep ? mask : std::vector<bool>(gradients), Backend::Products::sum_dtype(call.dtype));
    Tensor state = sums.new_state(call.input, call.wide());
    sums.place_in(state);

    std::optional<Tensor> one;
    if (keep) one = ones(call.input, {}, call.wide());
    if (call.rows * call.columns == 0) torch::stable::zero_(state);
    auto [result, losses] = run<Backend>(call, reduction, out_dtype, loss_dtype, one, sums, normaliser_in(state));
    if (reduced) return {result, state};
    Tensor of_rows = torch::stable::to(losses, scalar_type(out_dtype));
    return {torch::stable::reshape(of_rows, call.row_shape), state};
  }

  // The gradients are made where they are handed out, and with what a mean divides by; a state would be read and
  // written once more, and the weight's gradient may be larger than all else. Where the forward pass keeps none, both
  // passes.
  template <class Backend>
  std::tuple<Tensor, Grads<gradients>> value_and_grad(const Inputs& tensors, std::optional<Reduction> reduction,
                                                      std::optional<ScalarType> dtype,
                                                      const std::vector<bool>& mask) const {
    using namespace linear;
    expect_reduced(name, reduction);
    if (!kept(reduction, mask)) {
      auto [result, state] = forward<Backend>(tensors, reduction, dtype, mask);
      Tensor one = ones(result, {}, *known_dtype(result.scalar_type()));
      return {result, grad<Backend>(one, state, tensors, reduction, mask)};
    }
    Call<LinearCrossEntropy> call(tensors);
    check(call);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.result), loss_dtype = compute_dtype(out_dtype, call.result);
    Grads<gradients> grads;
    for (int k = 0; k < kArguments; k++)
      if (mask[k]) grads[k] = empty_like(*tensors[k], *known_dtype(tensors[k]->scalar_type()));
    GradientSums sums(call, mask, Backend::Products::sum_dtype(call.dtype));
    sums.place_beside(grads, call.input);
    if (call.rows * call.columns == 0) sums.zero();
    Tensor normaliser = new_empty(call.input, {1}, call.wide());
    const Tensor share = share_of_loss<Backend>(call, of_scores.ignore_index, reduction == Reduction::mean);
    auto [result, losses] = run<Backend>(call, reduction, out_dtype, loss_dtype, share, sums, normaliser);
    sums.copy_to(grads);
    return {result, grads};
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& tensors,
                        std::optional<Reduction> reduction, const std::vector<bool>& mask) const {
    using namespace linear;
    Call<LinearCrossEntropy> call(tensors);
    check(call);
    typename Backend::Guard guard(call.input);
    bool reduced = reduction != Reduction::none;
    DType grad_dtype = check_grad_output(name, grad_output, reduced ? Shape{} : call.row_shape, call.input);
    for (int k : {kTargetAt, kWeightAt})
      check_no_gradient_beside_indices(name, call.name(k), mask[k], !call.probabilities);
    GradientSums sums(call, mask, Backend::Products::sum_dtype(call.dtype));
    bool keep = kept(reduction, mask);
    check_state(name, state, {keep ? sums.state_size(call.wide()) : 1}, call.wide(), call.input);

    Grads<gradients> grads;
    for (int k = 0; k < kArguments; k++)
      if (mask[k]) grads[k] = empty_like(*tensors[k], *known_dtype(tensors[k]->scalar_type()));
    Tensor normaliser = normaliser_in(state);
    if (keep) {
      sums.place_in(state);
    } else {
      sums.place_beside(grads, call.input);
      Tensor grad_loss = torch::stable::reshape(grad_output, reduced ? Shape{1} : call.losses_shape(call.rows));
      if (reduced) {
        grad_loss = new_empty(call.input, {1}, call.wide());
        map_tensors<Backend, Scale>(ScoreLoss::name, call.wide(),
                                    {ones(state, {1}, call.wide()), grad_output, normaliser}, grad_loss);
      }
      recompute<Backend>(call, reduction, grad_loss, sums, grads[kTargetAt], grads[kWeightAt]);
    }
    if (!keep) {
      sums.copy_to(grads);
      return grads;
    }
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt}) {
      if (!mask[k]) continue;
      Tensor part = torch::stable::reshape(*sums.part[k], shape_of(*grads[k]));
      DType compute = compute_dtype(grad_dtype, call.dtype);
      map_tensors<Backend, Scale>(ScoreLoss::name, compute, {part, grad_output, normaliser}, *grads[k]);
    }
    return grads;
  }

 private:
  // The reduced loss, and the losses. With a gradient that each of these has, the gradients of what they depend on are
  // added up.
  template <class Backend>
  std::tuple<Tensor, Tensor> run(const linear::Call<LinearCrossEntropy>& call, std::optional<Reduction> reduction,
                                 DType out_dtype, DType loss_dtype, const std::optional<Tensor>& grad_loss,
                                 const linear::GradientSums& sums, const Tensor& mean_over) const {
    using namespace linear;
    Pass<LinearCrossEntropy, Backend> pass(call, grad_loss.has_value());
    RowLosses<LinearCrossEntropy, Backend> rows(of_scores, call, reduction, loss_dtype);
    Tensor losses = new_empty(call.input, call.losses_shape(call.rows), loss_dtype);
    Tensor normalisers = new_empty(call.input, {pass.chunks()}, DType::float64);
    pass.each([&](const Chunk& c) {
      ChunkLosses found = rows.of(c);
      Tensor loss = rows_of(losses, c.first, c.count), normaliser = rows_of(normalisers, c.index, 1);
      torch::stable::copy_(loss, found.loss);
      torch::stable::copy_(normaliser, rows_of(found.state, found.state.numel() - 1, 1));
      if (!grad_loss) return;
      rows.write_slopes(c, found, *grad_loss, pass.slopes(c));
      pass.backpropagate(c, sums);
    });
    Tensor result = new_empty(call.input, {}, out_dtype);
    const bool reduced = reduction != Reduction::none;
    FinishLoss finish{reduced ? operand_of(result) : Operand{}, operand_of(mean_over), reduction == Reduction::mean};
    SumLosses sum{operand_of(losses), operand_of(normalisers), pass.chunks()};
    Backend::template total<2>(losses, losses.numel(), 1, sum, finish);
    return {result, losses};
  }
  // The gradient of each loss in the reduced one.
  template <class Backend>
  static Tensor share_of_loss(const linear::Call<LinearCrossEntropy>& call, const int64_t ignore_index, bool mean) {
    using namespace linear;
    Tensor share = new_empty(call.input, {}, call.wide());
    const int64_t losses = element_count(name, call.row_shape);
    if (!mean) return torch::stable::fill_(share, 1.0);
    if (call.probabilities) return torch::stable::fill_(share, losses == 0 ? 0.0 : 1.0 / double(losses));
    Tensor target = torch::stable::reshape(call.target, {losses});
    const CountLosses count{operand_of(target), call.weight ? operand_of(*call.weight) : Operand{}, ignore_index,
                            call.classes};
    Backend::template total<1>(target, losses, 1, count, WriteShare{operand_of(share)});
    return share;
  }
  static Tensor normaliser_in(const Tensor& state) { return rows_of(state, state.numel() - 1, 1); }
  // torch.nn.functional.linear_cross_entropy refuses any ignore_index there; the default is no different from none.
  void check(const linear::Call<LinearCrossEntropy>& call) const {
    if (call.probabilities && of_scores.ignore_index != -100)
      fail(name, "class indices as target beside an ignore_index, got class probabilities and ",
           of_scores.ignore_index);
  }

  template <class Backend>
  void recompute(const linear::Call<LinearCrossEntropy>& call, std::optional<Reduction> reduction,
                 const Tensor& grad_loss, linear::GradientSums& sums, std::optional<Tensor>& grad_target,
                 std::optional<Tensor>& grad_weight) const {
    using namespace linear;
    bool products = sums.elements > 0;
    Pass<LinearCrossEntropy, Backend> pass(call, products);
    RowLosses<LinearCrossEntropy, Backend> rows(of_scores, call, reduction, compute_dtype(call.result, call.dtype));
    if (pass.chunks() == 0) sums.zero();
    if (grad_weight) torch::stable::zero_(*grad_weight);
    bool apart = grad_target && !grad_target->is_contiguous();
    Tensor by_row;  // the gradient in the target, as the chunks have it
    if (grad_target) {
      Shape shape = call.scores_shape(call.rows);
      by_row = apart ? new_empty(call.input, shape, *known_dtype(grad_target->scalar_type()))
                     : torch::stable::reshape(*grad_target, shape);
    }
    pass.each([&](const Chunk& c) {
      ChunkLosses found = rows.of(c);
      Tensor of_chunk = grad_loss.size(0) == 1 ? grad_loss : rows_of(grad_loss, c.first, c.count);
      if (grad_target || grad_weight) {
        auto shares = rows.shares(c, found, of_chunk, bool(grad_target), bool(grad_weight));
        if (grad_target) {
          Tensor place = rows_of(by_row, c.first, c.count);
          torch::stable::copy_(place, *shares[1]);
        }
        if (grad_weight)
          map_tensors<Backend, Add>(ScoreLoss::name, call.wide(), {*grad_weight, *shares[2]}, *grad_weight);
      }
      if (!products) return;
      rows.write_slopes(c, found, of_chunk, pass.slopes(c));
      pass.backpropagate(c, sums);
    });
    if (apart) torch::stable::copy_(*grad_target, torch::stable::reshape(by_row, shape_of(*grad_target)));
  }
};

// log p_y of the target, entropy -sum_c p_c log p_c and log-sum-exp of z = softcap(scores) / temperature, p =
// softmax(z). The scores, and their gradient, are of the operands' dtype, as in F.linear; the rest is float32 at least.
struct LinearLogProb {
  struct Scores : RowFormula {
    static constexpr auto name = "linear_log_prob";
    static constexpr auto args = "Tensor scores, Tensor target";
    static constexpr int inputs = 2;
  };
  static constexpr auto name = Scores::name;
  static constexpr auto args =
      "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias=None, float temperature=1.0, "
      "float softcap=0.0, int ignore_index=-100";
  static constexpr const char* results[] = {"log_prob", "entropy", "lse"};
  static constexpr int inputs = 4, gradients = 4;
  static constexpr bool keeps_state = true, loss = true;
  linear::RowStatistics statistics;
  int64_t ignore_index;

  static LinearLogProb make(double temperature, double softcap, int64_t ignore_index) {
    expect(temperature > 0 && temperature < INFINITY, name, "a finite temperature > 0", temperature);
    return {{1 / temperature, Softcap::make(name, softcap)}, ignore_index};
  }

  template <class Backend>
  std::array<Tensor, 3> value(const Inputs& tensors, std::optional<Reduction>, std::optional<ScalarType> dtype) const {
    return run<Backend>(tensors, dtype, nullptr);
  }
  // The state: of every row its RowState.
  template <class Backend>
  std::tuple<std::array<Tensor, 3>, Tensor> forward(const Inputs& tensors, std::optional<Reduction>,
                                                    std::optional<ScalarType> dtype) const {
    Tensor state;
    auto results = run<Backend>(tensors, dtype, &state);
    return {results, state};
  }

  template <class Backend>
  Grads<gradients> grad(const Incoming<LinearLogProb>& incoming, const Tensor& state, const Inputs& tensors,
                        std::optional<Reduction>, const std::vector<bool>& mask) const {
    using namespace linear;
    Call<LinearLogProb> call(tensors);
    typename Backend::Guard guard(call.input);
    check_no_gradient_beside_indices(name, call.name(kTargetAt), mask[kTargetAt], true);
    const int64_t rows = element_count(name, call.row_shape);
    Operand of_results[3];
    std::vector<Tensor> alive;
    for (int k = 0; k < 3; k++) {
      if (!incoming[k]) continue;
      std::string argument = std::string("grad_") + results[k];
      check_grad_output(name, *incoming[k], call.row_shape, call.input, argument.c_str());
      alive.push_back(torch::stable::reshape(*incoming[k], {rows}));
      of_results[k] = operand_of(alive.back());
    }
    DType computed = state.scalar_type() == ScalarType::Double ? DType::float64 : call.wide();
    check_state(name, state, {3 * rows}, computed, call.input);
    check_targets<Backend>(call);

    Grads<gradients> grads;
    GradientSums sums(call, mask, Backend::Products::sum_dtype(call.dtype));
    auto allocate = [&] {
      for (int k = 0; k < gradients; k++)
        if (mask[k]) grads[k] = empty_like(*tensors[k], call.dtype);
    };
    // Gradients of fewer bits than their sums wait until the memory of the scores is free again.
    const bool of_sums = sums.dtype == call.dtype || sums.elements == 0;
    if (of_sums) allocate();
    if (sums.elements == 0) return grads;
    sums.place_beside(grads, call.input);
    backpropagate<Backend>(call, of_results, state, computed, sums);
    if (!of_sums) allocate();
    sums.copy_to(grads);
    return grads;
  }

 private:
  template <class Backend>
  void backpropagate(const linear::Call<LinearLogProb>& call, const Operand (&of_results)[3], const Tensor& state,
                     DType computed, linear::GradientSums& sums) const {
    using namespace linear;
    Pass<LinearLogProb, Backend> pass(call, true);
    if (pass.chunks() == 0) sums.zero();
    in_compute_type(computed, computed, [&](auto zero) {
      using T = decltype(zero);
      Tensor one = ones(call.input, {}, computed), target = flat_target(call);
      const RowState<T> kept{static_cast<T*>(state.mutable_data_ptr()), state.numel() / 3};
      pass.each([&](const Chunk& c) {
        GroupCall<RowStatistics> groups(Inputs{c.scores});
        Tensor coefficients = new_empty(call.input, {groups.state_size()}, computed);
        Tensor hits = new_empty(call.input, {groups.groups}, computed), slopes = pass.slopes(c);
        const RowGradients<T> of{statistics,
                                 targets(call, c, target),
                                 kept,
                                 of_results[0],
                                 of_results[1],
                                 of_results[2],
                                 static_cast<T*>(coefficients.mutable_data_ptr()),
                                 static_cast<T*>(hits.mutable_data_ptr()),
                                 groups.groups};
        Backend::each(groups.groups, 1, of);
        std::optional<Tensor> out = slopes;
        auto problem = groups.problem(&one, &coefficients, &out, Reduction::none);
        with_mode(statistics, [&](auto mode) { Backend::Groups::template grad<T, mode>(statistics, problem); });
        Backend::each(groups.groups, 1, WriteHits<T>{of, operand_of(slopes)});
        pass.backpropagate(c, sums);
      });
    });
  }
  template <class Backend>
  std::array<Tensor, 3> run(const Inputs& tensors, std::optional<ScalarType> dtype, Tensor* state) const {
    using namespace linear;
    Call<LinearLogProb> call(tensors);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.dtype), computed = compute_dtype(call.dtype, out_dtype);
    check_targets<Backend>(call);
    const int64_t rows = element_count(name, call.row_shape);
    std::array<Tensor, 3> out;
    for (Tensor& t : out) t = new_empty(call.input, call.row_shape, out_dtype);
    if (state) *state = new_empty(call.input, {3 * rows}, computed);
    in_compute_type(computed, computed, [&](auto zero) {
      using T = decltype(zero);
      const RowState<T> kept{state ? static_cast<T*>(state->mutable_data_ptr()) : nullptr, rows};
      Tensor target = flat_target(call);
      Pass<LinearLogProb, Backend>(call, false).each([&](const Chunk& c) {
        GroupCall<RowStatistics> groups(Inputs{c.scores});
        Tensor found = new_empty(call.input, {groups.state_size()}, computed);
        auto problem = groups.problem(nullptr, &found, nullptr, Reduction::none);
        with_mode(statistics,
                  [&](auto mode) { Backend::Groups::template forward<T, mode>(statistics, problem, found, computed); });
        const RowState<T> of_chunk{static_cast<T*>(found.mutable_data_ptr()), groups.groups};
        Backend::each(groups.groups, 1,
                      WriteRows<T>{statistics, targets(call, c, target), of_chunk, kept, operand_of(out[0]),
                                   operand_of(out[1]), operand_of(out[2])});
      });
    });
    return out;
  }
  // With one stride.
  static Tensor flat_target(const linear::Call<LinearLogProb>& call) {
    return torch::stable::reshape(call.target, {call.target.numel()});
  }
  linear::TargetScores targets(const linear::Call<LinearLogProb>& call, const linear::Chunk& c,
                               const Tensor& target) const {
    const int64_t places = call.columns / call.classes;
    return {operand_of(c.scores), c.scores.strides()[0], places,      call.classes,
            operand_of(target),   c.first * places,      ignore_index};
  }
  template <class Backend>
  void check_targets(const linear::Call<LinearLogProb>& call) const {
    if constexpr (Backend::checks_values) {
      Tensor target = flat_target(call);
      const Operand o = operand_of(target);
      for (int64_t i = 0; i < target.numel(); i++) {
        const int64_t y = get<int64_t>(o, i * o.stride[0]);
        if (y != ignore_index && (y < 0 || y >= call.classes)) fail_class(name, call.classes, ignore_index, y);
      }
    }
  }
};

using Ops = WrittenOps<LinearCrossEntropy, LinearLogProb>;

}  // namespace lossreg
