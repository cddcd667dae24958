#pragma once
// Losses over sequences: connectionist temporal classification (Graves et al., ICML 2006).
#include "../formula.h"
#include "../tensor.h"

namespace lossreg {
namespace ctc {

// A sample's lattice has a state for each of its labels and for the blanks around them, 2 labels + 1. A row of it holds
// one value a state, and before them a -inf for each of the two that a path may come from.
constexpr int64_t kBefore = 2;
HD int64_t width_of(int64_t labels) {
  return kBefore + 2 * labels + 1;
}

// log(e^a + e^b + e^c); -inf where all are; NaN stays. The logarithms of probabilities grow with the length of the
// sequence and are added up in double; what they differ by, in the type that is computed in.
template <class T>
HD double log_sum_exp(double a, double b, double c) {
  double high = a > b ? a : b, low = a > b ? b : a;
  double top = high > c ? high : c, middle = high > c ? c : high;
  double from = top == -INFINITY ? 0.0 : top;
  return top + double(log(T(1) + exp(T(low - from)) + exp(T(middle - from))));
}

struct Sample {
  int64_t steps, labels;
  int64_t target;    // where its labels begin in targets
  int64_t row;       // where its row begins in an array of one row a sample
  int64_t capacity;  // and how much room it has there
  bool valid;        // are its lengths?
  // With more labels than steps the loss is infinite, and there is nothing to compute.
  HD bool fits() const { return valid && labels <= steps; }
  HD int64_t states() const { return 2 * labels + 1; }
  HD int64_t width() const { return width_of(labels); }
};

struct Batch {
  Operand log_probs;  // strides of step, sample and class
  Operand targets;    // of sample and label
  Operand input_lengths, target_lengths;
  const int64_t* ends;  // of the samples' labels, where targets are concatenated; null: targets have one row a sample
  int64_t steps, samples, classes, blank;
  int64_t labels;  // of a row of targets, or of all samples together

  // Of an array of one row a sample: concatenated labels need as much room however they are divided.
  HD int64_t room() const { return (kBefore + 1) * samples + 2 * labels * (ends ? 1 : samples); }

  HD Sample sample(int64_t n) const {
    Sample x;
    x.steps = get<int64_t>(input_lengths, n * input_lengths.stride[0]);
    x.labels = get<int64_t>(target_lengths, n * target_lengths.stride[0]);
    x.valid = x.steps >= 0 && x.steps <= steps && x.labels >= 0 && x.labels <= labels && (!ends || ends[n] <= labels);
    int64_t first = ends ? ends[n] - x.labels : n * labels;
    x.target = ends ? first * targets.stride[1] : n * targets.stride[0];
    x.row = (kBefore + 1) * n + 2 * first;
    x.capacity = x.valid ? width_of(ends ? x.labels : labels) : 0;
    return x;
  }
  HD int64_t label(const Sample& x, int64_t k) const { return get<int64_t>(targets, x.target + k * targets.stride[1]); }
  // Of a state: blanks are the even ones.
  HD int64_t state_label(const Sample& x, int64_t s) const { return s % 2 ? label(x, s / 2) : blank; }
  HD bool is_class(int64_t label) const { return label >= 0 && label < classes; }
};

// The type that is computed in, for log_probs that hold S.
template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

// What both passes need to know of the states: arrays of one row a sample.
template <class S>
struct Lattice {
  using T = Compute<S>;
  Batch batch;
  int32_t* label;  // 0 where it is no class
  double* skip;    // 0 where a state may be entered from the one before the last: between different labels; else -inf
  T* score;        // log p of the label, at one step

  HD Lattice of(const Sample& x) const { return {batch, label + x.row, skip + x.row, score + x.row}; }

  // To be called with that of a sample; what it wrote, all threads can read after. Is every label a class?
  template <class Team>
  HD bool prepare(const Sample& x, Team team) const {
    int64_t wrong = 0;
    for (int64_t s = team.rank(); s < x.width(); s += team.size()) {
      int64_t own = s < x.states() ? batch.state_label(x, s) : -1;
      skip[s] = s >= 2 && s < x.states() && own != batch.state_label(x, s - 2) ? 0.0 : -INFINITY;
      label[s] = batch.is_class(own) ? int32_t(own) : 0;
      wrong += s < x.states() && !batch.is_class(own);
    }
    return team.sum(wrong) == 0;
  }
  template <class Team>
  HD void read_scores(const Sample& x, int64_t n, int64_t t, Team team) const {
    const int64_t* stride = batch.log_probs.stride;
    const S* from = static_cast<const S*>(batch.log_probs.data) + t * stride[0] + n * stride[1];
    int64_t step = stride[2];
    const int32_t* labels = label;
    T* to = score;
    team.each(x.states(), [=](int64_t s) { to[s] = widen<T>(from[labels[s] * step]); });
  }
};
// The forward variables of a sample, and its loss. Row 0 is before the first step, row t + 1 at step t.
template <class S>
struct Forward {
  using T = Compute<S>;
  Lattice<S> samples;
  double* alpha;
  bool keep;  // every row, for the backward pass; else two in turn
  double* loss;

  template <class Team>
  HD void operator()(int64_t n, Team team) const {
    const Batch& batch = samples.batch;
    Sample x = batch.sample(n);
    int64_t rows = keep ? batch.steps + 1 : 2;
    double* first = alpha + rows * x.row;
    // what is left of the sample's room
    int64_t used = !x.fits() ? 0 : keep ? (x.steps + 1) * x.width() : 2 * x.width();
    team.each(rows * x.capacity - used, [=](int64_t k) { first[used + k] = 0; });
    if (!x.fits()) {
      if (team.rank() == 0) loss[n] = x.valid ? INFINITY : NAN;
      return;
    }
    Lattice<S> lattice = samples.of(x);
    // All of the probability in the first state, so that the first step enters this one or the next.
    double start = lattice.prepare(x, team) ? 0.0 : NAN;
    team.each(x.width(), [=](int64_t k) { first[k] = k == kBefore ? start : start - INFINITY; });
    auto row = [=](int64_t r) { return first + (keep ? r : r % 2) * x.width() + kBefore; };
    for (int64_t t = 0; t < x.steps; t++) {
      lattice.read_scores(x, n, t, team);
      team.sync();  // the row before is complete
      const double *before = row(t), *skip = lattice.skip;
      const T* score = lattice.score;
      double* now = row(t + 1);
      team.each(x.states(), [=](int64_t s) {
        now[s] = log_sum_exp<T>(before[s], before[s - 1], before[s - 2] + skip[s]) + double(score[s]);
      });
      if (team.rank() == 0) now[-1] = now[-2] = -INFINITY;
    }
    team.sync();
    if (team.rank() == 0) loss[n] = 0.0 - log_likelihood(row(x.steps), x);
  }

  // Paths end in the last label or in the blank after it.
  HD static double log_likelihood(const double* row, const Sample& x) {
    return log_sum_exp<T>(row[x.states() - 1], row[x.states() - 2], -INFINITY);
  }
};

// The gradient of the loss, at each step of each sample: the result's gradient times what the reduction makes of one
// loss; 0 where there is none.
template <class S>
struct Scales {
  using T = Compute<S>;
  Batch batch;
  const double* alpha;
  Operand grad_output;
  bool mean;
  T* scale;

  template <class Team>
  HD void operator()(int64_t n, Team team) const {
    Sample x = batch.sample(n);
    double total = x.valid ? -INFINITY : NAN;
    if (x.fits())
      total = Forward<S>::log_likelihood(alpha + (batch.steps + 1) * x.row + x.steps * x.width() + kBefore, x);
    double grad = get<double>(grad_output, n * grad_output.stride[0]);
    if (mean) grad /= double(batch.samples) * double(x.labels > 1 ? x.labels : 1);
    // an infinite loss has no gradient
    T own = total == -INFINITY ? T(0) : T(total == total ? grad : total);
    int64_t samples = batch.samples, steps = x.valid ? x.steps : batch.steps;
    T* to = scale + n;
    team.each(batch.steps, [=](int64_t t) { to[t * samples] = t < steps ? own : T(0); });
  }
};

// Every class as if it were no label: the scale times p.
template <class S>
struct Unlabelled {
  using T = Compute<S>;
  HD void operator()(const T (&in)[2], T (&out)[1]) const {
    T value = in[1] * exp(in[0]);
    out[0] = in[1] == T(0) ? T(0) : value;
  }
};
// The labels' part of the gradient: the scale times p less the posterior probability of the label, by the backward
// variables, two rows of them in turn.
template <class S>
struct Labelled {
  using T = Compute<S>;
  Lattice<S> samples;
  const double* alpha;
  const T* scale;
  // two arrays of one row a sample each: written at one step while the other is still read
  double* beta;
  T *probability, *posterior;
  int32_t *first, *next;  // is a state the first of its label, and which is the next one: 0 for none
  Operand grad;           // strides of step, sample and class

  template <class Team>
  HD void operator()(int64_t n, Team team) const {
    const Batch& batch = samples.batch;
    Sample x = batch.sample(n);
    if (!x.fits() || x.steps == 0 || scale[n] == T(0)) return;
    Lattice<S> lattice = samples.of(x);
    lattice.prepare(x, team);
    link(x, lattice.label, team);

    int64_t states = x.states(), room = batch.room();
    const double* start = alpha + (batch.steps + 1) * x.row + kBefore;
    double total = Forward<S>::log_likelihood(start + x.steps * x.width(), x);
    // Mirrors the row before the first step; the two places behind the last state stay -inf.
    double* rows = beta + x.row;
    team.each(x.width(), [=](int64_t s) { rows[s] = rows[room + s] = s == states - 1 ? 0.0 : -INFINITY; });
    for (int64_t t = x.steps - 1; t >= 0; t--) {
      lattice.read_scores(x, n, t, team);
      team.sync();  // the row after is complete
      const double *ahead = start + (t + 1) * x.width(), *after = rows + (t + 1) % 2 * room, *skip = lattice.skip;
      const T* score = lattice.score;
      double* now = rows + t % 2 * room;
      T *p = probability + x.row + t % 2 * room, *q = posterior + x.row + t % 2 * room;
      team.each(states, [=](int64_t s) {
        double beyond = log_sum_exp<T>(after[s], after[s + 1], after[s + 2] + skip[s + 2]);
        q[s] = exp(T(ahead[s] + beyond - total));
        now[s] = beyond + double(score[s]);
      });
      team.each(states, [=](int64_t s) { p[s] = exp(score[s]); });
      write(x, lattice.label, n, t, p, q, team);
    }
  }

 private:
  // Chains of the states of one label, so that one thread adds them up, in order. Blanks are added up by all threads.
  template <class Team>
  HD void link(const Sample& x, const int32_t* label, Team team) const {
    for (int64_t s = 2 * team.rank() + 1; s < x.states(); s += 2 * team.size()) {
      int64_t before = s - 2, after = s + 2;
      while (before > 0 && label[before] != label[s]) before -= 2;
      while (after < x.states() && label[after] != label[s]) after += 2;
      first[x.row + s] = before < 0 && label[s] != samples.batch.blank;
      next[x.row + s] = after < x.states() ? int32_t(after) : 0;
    }
  }
  // A step's gradients, from the probability and the posterior probability of each state.
  template <class Team>
  HD void write(const Sample& x, const int32_t* label, int64_t n, int64_t t, const T* p, const T* q, Team team) const {
    int32_t blank = int32_t(samples.batch.blank);
    // all threads have written theirs when this has its sum
    T blanks = team.sum(x.states(), [=](int64_t s) { return label[s] == blank ? q[s] : T(0); });
    S* frame = static_cast<S*>(grad.data) + t * grad.stride[0] + n * grad.stride[1];
    int64_t step = grad.stride[2];
    T factor = scale[n];
    auto put = [=](int64_t s, T sum) { frame[label[s] * step] = Narrow<S>::from(factor * (p[s] - sum)); };
    if (team.rank() == 0) put(0, blanks);
    for (int64_t s = 2 * team.rank() + 1; s < x.states(); s += 2 * team.size()) {
      if (!first[x.row + s]) continue;
      T sum = T(0);
      for (int64_t same = s; same > 0; same = next[x.row + same]) sum += q[same];
      put(s, sum);
    }
  }
};

struct OneLoss {
  Operand result;
  const double* loss;
  bool zero_infinity;

  HD double at(int64_t n) const { return zero_infinity && loss[n] == INFINITY ? 0.0 : loss[n]; }
  HD void operator()(int64_t n) const { put(result, n, at(n)); }
};
struct LossSum {
  OneLoss one;
  Batch batch;
  bool mean;

  HD void operator()(int64_t n, double* sums) const {
    int64_t labels = batch.sample(n).labels;
    sums[0] += one.at(n) / double(mean && labels > 1 ? labels : 1);
  }
  HD void operator()(const double* sums) const { put(one.result, 0, mean ? sums[0] / double(batch.samples) : sums[0]); }
};

}  // namespace ctc

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
  // Where float64 is asked for, log_probs of another dtype are converted.
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
    if (target_dtype != DType::int64 && target_dtype != DType::int32 && target_dtype != DType::uint8)
      fail(name, "targets of dtype int64, int32 or uint8, got ", name_of(target_dtype));
    bool rows = labels.size() == 2 && labels[0] == b.samples;
    if (!rows && labels.size() != 1)
      fail(name, "targets of shape [", b.samples, ", S] or [sum of target_lengths] for log_probs of shape ",
           shape_text(shape), ", got ", shape_text(labels));
    b.labels = labels.back();
    b.input_lengths = lengths(c.log_probs, c.input_lengths, "input_lengths", b.samples);
    b.target_lengths = lengths(c.log_probs, c.target_lengths, "target_lengths", b.samples);

    if (wanted == ScalarType::Double && c.dtype != DType::float64) {
      c.log_probs = torch::stable::to(c.log_probs, ScalarType::Double);
      c.dtype = DType::float64;
    }
    b.log_probs = operand(c.log_probs, c.dtype, batched);
    b.targets = operand(c.targets, target_dtype, true);
    b.ends = nullptr;
    if (!rows) {
      b.targets.stride[1] = b.targets.stride[0];
      // relu: a negative length is an error, or NaN, of its own sample alone
      Tensor counts = call_aten("aten::relu", "", torch::stable::reshape(c.target_lengths, {-1}))[0];
      c.ends = call_aten("aten::cumsum", "", counts, int64_t(0), std::optional(ScalarType::Long))[0];
      b.ends = static_cast<const int64_t*>(c.ends.const_data_ptr());
    }
    return c;
  }
  // On the device of log_probs: lengths may be on the CPU, and are sent over without waiting.
  static Operand lengths(const Tensor& log_probs, Tensor& t, const char* argument, int64_t samples) {
    DType dtype = dtype_of(name, argument, t, false);
    if (is_floating(dtype) || dtype == DType::boolean)
      fail(name, argument, " of an integer dtype, got ", name_of(dtype));
    if (t.dim() > 1 || t.numel() != samples)
      fail(name, argument, " of shape ", shape_text({samples}), " for log_probs of shape ",
           shape_text(shape_of(log_probs)), ", got ", shape_text(shape_of(t)));
    if (log_probs.is_cuda() && t.is_cpu()) t = torch::stable::to(t, log_probs.device(), true);
    expect_one_device(name, log_probs, t);
    return operand(t, dtype, true);
  }
  // With a dimension of samples: where there is none, its stride is 0.
  static Operand operand(const Tensor& t, DType dtype, bool batched) {
    Operand o;
    o.data = const_cast<void*>(t.const_data_ptr());
    o.dtype = dtype;
    Shape strides(t.strides().begin(), t.strides().end());
    if (!batched) strides.insert(strides.begin() + 1, 0);
    std::copy(strides.begin(), strides.end(), o.stride);
    return o;
  }
  // On the CPU only.
  static void check_values(const ctc::Batch& b) {
    auto range = [&](const char* argument, int64_t value, int64_t most) {
      if (value < 0 || value > most) fail(name, argument, " in [0, ", most, "], got ", value);
    };
    int64_t sum = 0;
    for (int64_t n = 0; n < b.samples; n++) {
      ctc::Sample x = b.sample(n);
      range("input_lengths", x.steps, b.steps);
      range("target_lengths", x.labels, b.labels);
      sum += x.labels;
    }
    if (b.ends && sum != b.labels) fail(name, "target_lengths that sum to ", b.labels, " targets, got ", sum);
    for (int64_t n = 0; n < b.samples; n++) {
      ctc::Sample x = b.sample(n);
      for (int64_t k = 0; k < x.labels; k++)
        if (!b.is_class(b.label(x, k))) fail(name, "a class index in [0, ", b.classes, "), got ", b.label(x, k));
    }
  }

  template <class Use>
  static void with_storage_of(DType d, Use use) {
    if (d == DType::float64) use(double());
    else if (d == DType::float32) use(float());
    else if (d == DType::bfloat16) use(BFloat16());
    else use(Float16());
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
    Call c = parse(x, dtype);
    const ctc::Batch& b = c.batch;
    typename Backend::Guard guard(c.log_probs);
    if constexpr (Backend::checks_values) check_values(b);
    bool reduced = reduction != Reduction::none;
    DType out_dtype = dtype ? dtype_of(name, *dtype) : c.dtype;
    Tensor out = new_empty(c.log_probs, reduced || c.log_probs.dim() == 2 ? Shape{} : Shape{b.samples}, out_dtype);
    Tensor state = new_empty(c.log_probs, {(keep ? b.steps + 1 : 2) * b.room()}, DType::float64);
    Tensor losses = new_empty(c.log_probs, {b.samples}, DType::float64);
    auto* loss = static_cast<double*>(losses.mutable_data_ptr());
    with_storage_of(c.dtype, [&](auto zero) {
      using S = decltype(zero);
      std::vector<Tensor> scratch;
      auto* alpha = static_cast<double*>(state.mutable_data_ptr());
      Backend::teams(b.samples, cost(b), ctc::Forward<S>{lattice<S>(c, scratch), alpha, keep, loss});
    });
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
  std::vector<Tensor> grad(const Tensor& grad_output, const Tensor& state, const Inputs& x,
                           std::optional<Reduction> reduction, const std::vector<bool>& mask) const {
    ScalarType own = required(name, args, 0, x[0]).scalar_type();
    Call c = parse(x, grad_output.scalar_type());
    const ctc::Batch& b = c.batch;
    typename Backend::Guard guard(c.log_probs);
    bool one = reduction != Reduction::none || c.log_probs.dim() == 2;
    Shape expected = one ? Shape{} : Shape{b.samples};
    if (shape_of(grad_output) != expected)
      fail(name, "grad_output of shape ", shape_text(expected), ", got ", shape_text(shape_of(grad_output)));
    expect(int(mask.size()) == gradients, name, "one entry of output_mask a gradient", mask.size());
    Shape state_shape{(b.steps + 1) * b.room()};
    if (state.scalar_type() != ScalarType::Double || shape_of(state) != state_shape || !state.is_contiguous())
      fail(name, "the float64 state of the forward pass, of shape ", shape_text(state_shape), ", got ",
           shape_text(shape_of(state)));
    expect_one_device(name, c.log_probs, grad_output);
    expect_one_device(name, c.log_probs, state);
    DType grad_dtype = dtype_of(name, "grad_output", grad_output, true);
    if (!mask[0]) return {};

    Tensor grad = empty_like(c.log_probs, c.dtype);
    Operand grads = operand(grad, c.dtype, c.log_probs.dim() == 3), given;
    given.data = const_cast<void*>(grad_output.const_data_ptr());
    given.dtype = grad_dtype;
    given.stride[0] = one ? 0 : grad_output.strides()[0];
    with_storage_of(c.dtype, [&](auto zero) {
      using S = decltype(zero);
      using T = ctc::Compute<S>;
      std::vector<Tensor> scratch;
      const auto* alpha = static_cast<const double*>(state.const_data_ptr());
      Tensor scales = new_empty(c.log_probs, {b.steps * b.samples}, dtype_of_storage<T>);
      auto* scale = static_cast<T*>(scales.mutable_data_ptr());
      Backend::teams(b.samples, b.steps, ctc::Scales<S>{b, alpha, given, reduction == Reduction::mean, scale});
      auto view = [](const Operand& o) { return View{o.data, o.dtype, {o.stride[0], o.stride[1], o.stride[2]}}; };
      View views[] = {view(b.log_probs), {scale, dtype_of_storage<T>, {b.samples, 1, 0}}, view(grads)};
      auto everywhere = make_iteration<3>(name, {b.steps, b.samples, b.classes}, views);
      Backend::template map<T, 2, 1>(everywhere, ctc::Unlabelled<S>{});
      Backend::teams(
          b.samples, cost(b),
          ctc::Labelled<S>{lattice<S>(c, scratch), alpha, scale, rows<double>(c, scratch, 2), rows<T>(c, scratch, 2),
                           rows<T>(c, scratch, 2), rows<int32_t>(c, scratch, 1), rows<int32_t>(c, scratch, 1), grads});
    });
    return {grad.scalar_type() == own ? grad : torch::stable::to(grad, own)};
  }
};

using Ops = WrittenOps<CTCLoss>;

}  // namespace lossreg
