#pragma once
// Losses of two sides: a pair is a row of the input and the row of the target in the same place, and each row meets
// every row of the other side. The scores are z_ij = scale a_i b_j, plus a bias if there is one.
#include "pass.h"

namespace lossreg::contrast {

// The tensors of one call, checked against each other. Those from the third on are numbers.
template <class F>
struct PairCall {
  Tensor input, target;  // (N, D)
  std::vector<Tensor> numbers;
  DType dtype;
  int64_t rows, features;

  explicit PairCall(const Inputs& tensors)
      : input(detached(required(F::name, F::args, 0, tensors[0]))),
        target(detached(required(F::name, F::args, 1, tensors[1]))) {
    dtype = dtype_of(F::name, "input", input, true);
    Shape shape = shape_of(input);
    if (shape.size() != 2) fail(F::name, "input of shape (N, D), got ", shape_text(shape));
    rows = shape[0], features = shape[1];
    check_operand(F::name, "target", target, input, dtype);
    check_same_shape(F::name, "target", shape_of(target), "input", shape);
    for (int k = 2; k < F::inputs; k++) {
      ArgumentName name{F::args, k};
      Tensor number = detached(required(F::name, F::args, k, tensors[size_t(k)]));
      dtype_of(F::name, name, number, true);
      expect_one_device(F::name, input, number);
      if (number.dim() != 0) fail(F::name, name, " of shape [], got ", shape_text(shape_of(number)));
      numbers.push_back(number);
    }
    element_count(F::name, {rows, std::max(rows, features)});
  }
  DType wide() const { return compute_dtype(dtype); }
  // A pass of the input's rows over the target's.
  template <class Backend>
  Pass<Backend> pass(bool gradients, bool as_one = false) const {
    return {F::name, input, target, gradients, nullptr, as_one};
  }
};

// What is kept of a loss whose gradient the forward pass finds but for one factor: of the sum of all losses, the
// gradients in input and target, those that are asked for, but for the scale; and those in the numbers.
template <class F>
struct KeptGradients {
  static constexpr int numbers = F::inputs - 2;
  Tensor state, part[2];

  static int64_t elements(const PairCall<F>& call, const std::vector<bool>& mask) {
    return (int(mask[0]) + int(mask[1])) * call.rows * call.features;
  }
  static int64_t size(const PairCall<F>& call, const std::vector<bool>& mask, DType sums) {
    return numbers_for(elements(call, mask), sums, call.wide()) + numbers;
  }
  static Tensor new_state(const PairCall<F>& call, const std::vector<bool>& mask, DType sums) {
    return lossreg::new_state(call.input, elements(call, mask), sums, numbers, call.wide());
  }
  KeptGradients(const PairCall<F>& call, const std::vector<bool>& mask, DType sums, const Tensor& state)
      : state(state) {
    Tensor flat = viewed_as(state, sums);
    int64_t start = 0;
    for (int k = 0; k < 2; k++) {
      if (!mask[k]) continue;
      part[k] = strided(flat, {call.rows, call.features}, {call.features, 1}, start);
      start += call.rows * call.features;
    }
  }
  Tensor number(int k) const { return strided(state, {}, {}, state.numel() - numbers + k); }

  // The gradients, for that of the result, which is the sum divided by `divisor`.
  template <class Backend>
  Grads<F::gradients> times(const PairCall<F>& call, const Inputs& tensors, const Tensor& grad_output, double divisor,
                            const std::vector<bool>& mask) const {
    Operand g = operand_of(grad_output);
    Tensor of_vectors = factor_of<Backend>(call.input, call.wide(), g, operand_of(call.numbers[0]), divisor);
    Tensor of_numbers = factor_of<Backend>(call.input, call.wide(), g, {}, divisor);
    Grads<F::gradients> grads;
    for (int k = 0; k < F::gradients; k++) {
      if (!mask[k]) continue;
      grads[k] = empty_like(*tensors[k], *known_dtype(tensors[k]->scalar_type()));
      write_gradient<Backend>(F::name, k < 2 ? part[k] : number(k - 2), k < 2 ? of_vectors : of_numbers, *grads[k]);
    }
    return grads;
  }
};

// ---- SigLIP: each score is a binary decision of its own.

// The row's loss, and its sums of slope * product and of slope, which the scale's and the bias's gradients are made of.
template <class T, class S, int L>
struct SigLipRows {
  ChunkSlopes<T, S> of;
  Operand scale, bias;
  double* sums;  // three a row

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    const T s = get<T>(scale, 0), c = get<T>(bias, 0);
    const int64_t own = of.first + i;
    T loss[L] = {}, along[L] = {}, all[L] = {};
    each_tile<L>(of.columns, team, [&](int64_t at, int n) {
      const T* g = of.at(i, at);
      T slope[L];
      for (int j = 0; j < n; j++) {
        const T z = s * g[j] + c, x = at + j == own ? -z : z;  // -log sigma(-x)
        const T e = exp_negative(-abs(x)), r = inverse_1p_unit(e);
        const T p = x < T(0) ? e * r : r;
        slope[j] = at + j == own ? -p : p;
        loss[j] += relu(x) + log1p_unit(e);
        along[j] += slope[j] * g[j];
        all[j] += slope[j];
      }
      of.put(i, at, n, slope);
    });
    double of_row[] = {team.sum(lane_sum(loss)), team.sum(lane_sum(along)), team.sum(lane_sum(all))};
    if (team.rank() == 0)
      for (int k = 0; k < 3; k++) sums[3 * own + k] = of_row[k];
  }
};
struct AddSigLip {
  const double* sums;
  HD void operator()(int64_t i, double (&total)[3]) const {
    for (int k = 0; k < 3; k++) total[k] += sums[3 * i + k];
  }
};
struct FinishSigLip {
  Operand result, in_scale, in_bias;
  double pairs;
  HD void operator()(const double (&total)[3]) const {
    put(result, 0, total[0] / pairs);
    put(in_scale, 0, total[1]);
    put(in_bias, 0, total[2]);
  }
};

// ---- CLIP: a softmax over each row, and one over each column.

template <class T, int L>
struct ClipRows {
  ChunkProducts<T> of;
  Operand scale;
  LogSumExps<T> rows;
  T* own_score;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    const T s = get<T>(scale, 0);
    const int64_t own = of.first + i;
    Lanes<T, L> lanes;
    each_tile<L>(of.columns, team, [&](int64_t at, int n) {
      const T* g = of.at(i, at);
      for (int j = 0; j < n; j++) add_exponentials<1>(lanes.max[j], lanes.sum[j], {s * g[j]});
    });
    LogSumExp<T> all = of_team(lanes.merged(), team);
    if (team.rank() > 0) return;
    rows.put(own, all);
    own_score[own] = s * *of.at(i, own);
  }
};
// A column's log-sum-exp is made of those of segments of it, so that there is work for all threads.
constexpr int64_t kSegment = 128;

template <class T, int L>
struct ClipSegments {
  ChunkProducts<T> of;
  Operand scale;
  int64_t rows;
  T *max, *sum;  // of each segment, those of all columns

  HD void operator()(int64_t i) const {
    const T s = get<T>(scale, 0);
    const int64_t strips = (of.columns + L - 1) / L, segment = i / strips, at = i % strips * L;
    const int64_t first = segment * kSegment, last = first + kSegment < rows ? first + kSegment : rows;
    const int n = L == 1 ? 1 : int(of.columns - at < L ? of.columns - at : L);  // 1: lanes stay in registers
    Lanes<T, L> lanes;
    for (int64_t r = first; r < last; r++) {
      const T* g = of.at(r, at);
      for (int j = 0; j < n; j++) add_exponentials<1>(lanes.max[j], lanes.sum[j], {s * g[j]});
    }
    for (int j = 0; j < n; j++) {
      max[segment * of.columns + at + j] = lanes.max[j];
      sum[segment * of.columns + at + j] = lanes.sum[j];
    }
  }
};
// Joins a chunk's segments, and what was there of the chunks before it. Until the last chunk, the sum itself stands in
// the place of its logarithm.
template <class T>
struct JoinSegments {
  const T *max, *sum;
  int64_t segments, columns;
  bool first, last;
  LogSumExps<T> of_columns;

  HD void operator()(int64_t j) const {
    LogSumExp<T> all = LogSumExp<T>::empty();
    if (!first) all = {of_columns.max[j], of_columns.log[j]};
    for (int64_t k = 0; k < segments; k++) all.merge({max[k * columns + j], sum[k * columns + j]});
    if (last) return of_columns.put(j, all);
    of_columns.max[j] = all.max;
    of_columns.log[j] = all.sum;
  }
};

template <class T>
struct ClipValue {
  LogSumExps<T> rows, columns;
  const T* own_score;
  HD double operator()(int64_t i) const { return 0.5 * (rows.above(i, own_score[i]) + columns.above(i, own_score[i])); }
};
template <class Value>
struct WriteEach {
  Value value;
  Operand out;
  HD void operator()(int64_t i) const { put(out, i, value(i)); }
};
template <class Value>
struct AddEach {
  Value value;
  HD void operator()(int64_t i, double (&sums)[1]) const { sums[0] += value(i); }
};

// The slopes, for the pairs' weights, which are their losses' gradients; and a row's sum of slope * product, which the
// scale's gradient is made of.
template <class T, class S, int L>
struct ClipSlopes {
  ChunkSlopes<T, S> of;
  Operand scale;
  LogSumExps<T> rows, columns;
  const T* weight;
  double* along;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    const T s = get<T>(scale, 0);
    const int64_t own = of.first + i;
    const T w = weight[own], max = rows.max[own], log = rows.log[own];
    T sum[L] = {};
    each_tile<L>(of.columns, team, [&](int64_t at, int n) {
      const T* g = of.at(i, at);
      T slope[L];
      for (int j = 0; j < n; j++) {
        const T z = s * g[j];
        const T both = w * exp_term((z - max) - log) + weight[at + j] * columns.share(at + j, z);
        slope[j] = T(0.5) * both - (at + j == own ? w : T(0));
        sum[j] += slope[j] * g[j];
      }
      of.put(i, at, n, slope);
    });
    const double of_row = team.sum(lane_sum(sum));
    if (team.rank() == 0) along[own] = of_row;
  }
};

}  // namespace lossreg::contrast
