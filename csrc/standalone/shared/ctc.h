#pragma once
// Connectionist temporal classification (Graves et al., ICML 2006): what its kernels do with one sequence. The op over
// them is in standalone/sequence.h.
#include "lattice.h"

namespace lossreg {
namespace ctc {

using lattice::Compute, lattice::copy_steps, lattice::kMostSteps, lattice::Memory;

// A sample's lattice has a state for each of its labels and for the blanks around them, 2 labels + 1. A row of it holds
// one value a state, and before them a -inf for each of the two that a path may come from.
constexpr int64_t kBefore = 2;
HD int64_t width_of(int64_t labels) {
  return kBefore + 2 * labels + 1;
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
  // Of the samples' labels, where targets are concatenated; null: targets have one row a sample. A length beyond all
  // labels counts as one more than there are (BoundedLengths), so that the sum of any lengths fits.
  const int64_t* ends;
  int64_t steps, samples, classes, blank;
  int64_t labels;  // of a row of targets, or of all samples together

  // Of an array of one row a sample: concatenated labels need as much room however they are divided.
  HD int64_t room() const { return (kBefore + 1) * samples + 2 * labels * (ends ? 1 : samples); }

  HD int64_t input_length(int64_t n) const { return get<int64_t>(input_lengths, n * input_lengths.stride[0]); }
  HD int64_t target_length(int64_t n) const { return get<int64_t>(target_lengths, n * target_lengths.stride[0]); }

  HD Sample sample(int64_t n) const {
    Sample x;
    x.steps = input_length(n);
    x.labels = target_length(n);
    x.valid = x.steps >= 0 && x.steps <= steps && x.labels >= 0 && x.labels <= labels && (!ends || ends[n] <= labels);
    // what is no length is not computed with
    if (!x.valid) x.steps = x.labels = 0;
    int64_t first = !ends ? n * labels : x.valid ? ends[n] - x.labels : 0;
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

// The target lengths as their running sum takes them. A negative one is an error, or NaN, of its own sample alone.
struct BoundedLengths {
  Batch batch;
  int64_t* bounded;
  HD void operator()(int64_t n) const {
    int64_t length = batch.target_length(n);
    bounded[n] = length < 0 ? 0 : length > batch.labels ? batch.labels + 1 : length;
  }
};

// What both passes need to know of the states: arrays of one row a sample, or of a team's memory.
template <class S>
struct Lattice {
  using T = Compute<S>;
  Batch batch;
  int32_t* label;  // 0 where it is no class
  double* skip;    // 0 where a state may be entered from the one before the last: between different labels; else -inf
  T* score;        // log p of the label, at one step, or at a few: a row each

  static constexpr int64_t kBytes = sizeof(double) + sizeof(int32_t), kStepBytes = sizeof(T);

  HD Lattice of(const Sample& x) const { return {batch, label + x.row, skip + x.row, score + x.row}; }
  template <class Team>
  HD Lattice in(Memory<Team>& memory) const {
    auto* skip = memory.template take<double>(1);
    auto* score = memory.template take<T>(memory.steps());
    return {batch, memory.template take<int32_t>(1), skip, score};
  }

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
  // Those of the steps t to t + steps - 1; each thread reads what it takes of team.each().
  template <class Team>
  HD void read_scores(const Sample& x, int64_t n, int64_t t, int steps, Team team) const {
    constexpr int K = kMostSteps<Team>;
    const int64_t* stride = batch.log_probs.stride;
    const S* from = static_cast<const S*>(batch.log_probs.data) + t * stride[0] + n * stride[1];
    int64_t step = stride[2], next = stride[0], width = x.width();
    const int32_t* labels = label;
    T* to = score;
    team.each(x.states(), [=](int64_t s) { copy_steps<K>(from + labels[s] * step, next, to + s, width, steps); });
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
    // two rows in turn, and what the lattice has
    Memory<Team> memory(team, x.width(), 2 * sizeof(double) + Lattice<S>::kBytes, Lattice<S>::kStepBytes);
    const bool inside = memory.steps() > 0;
    const int together = inside ? memory.steps() : 1;
    double* two = inside ? memory.template take<double>(2) : nullptr;
    const Lattice<S> lattice = inside ? samples.in(memory) : samples.of(x);
    const int64_t width = x.width();
    double* stored = first + kBefore;  // the row of the state that is next to be kept
    double *before = inside ? two + kBefore : stored, *now = before + width;

    // All of the probability in the first state, so that the first step enters this one or the next.
    double start = lattice.prepare(x, team) ? 0.0 : NAN;
    auto begin = [=](double* to) {
      team.each(width, [=](int64_t k) { to[k - kBefore] = k == kBefore ? start : start - INFINITY; });
    };
    begin(before);
    if (inside) begin(now);
    if (inside && keep) begin(stored);
    for (int64_t from = 0; from < x.steps; from += together) {
      const int steps = int(x.steps - from < together ? x.steps - from : together);
      lattice.read_scores(x, n, from, steps, team);
      for (int k = 0; k < steps; k++) {
        team.sync();  // the row before is complete
        stored += width;
        const double* skip = lattice.skip;
        const T* score = lattice.score + k * width;
        double* kept = inside && keep ? stored : nullptr;
        team.each(x.states(), [=](int64_t s) {
          now[s] = log_sum_exp<T>(before[s], before[s - 1], before[s - 2] + skip[s]) + double(score[s]);
          if (kept) kept[s] = now[s];
        });
        double* ends = inside ? kept : now;
        if (team.rank() == 0 && ends) ends[-1] = ends[-2] = -INFINITY;
        double* after = inside || !keep ? before : now + width;
        before = now, now = after;
      }
    }
    team.sync();
    if (team.rank() == 0) loss[n] = 0.0 - log_likelihood(before, x);
  }

  // Paths end in the last label or in the blank after it.
  HD static double log_likelihood(const double* row, const Sample& x) {
    return log_sum_exp<T>(row[x.states() - 1], row[x.states() - 2], -INFINITY);
  }
};

// What the gradient of a sample's loss is multiplied with, at each step: the result's gradient times what the reduction
// makes of one loss. 0 beyond the sample's steps and where the loss is infinite, NaN where it is NaN.
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
    T own = total == -INFINITY ? T(0) : T(total == total ? grad : total);
    int64_t samples = batch.samples, steps = x.valid ? x.steps : batch.steps;
    T* to = scale + n;
    team.each(batch.steps, [=](int64_t t) { to[t * samples] = t < steps ? own : T(0); });
  }
};

// Every class as if it were no label: the scale times p.
struct Unlabelled {
  template <class T>
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
  double* beta;           // two rows a sample
  T* posterior;           // one row a sample, and these
  int32_t *first, *next;  // is a state the first of its label, and which is the next one: 0 for none
  Operand grad;           // strides of step, sample and class

  template <class Team>
  HD void operator()(int64_t n, Team team) const {
    const Batch& batch = samples.batch;
    constexpr int K = kMostSteps<Team>;
    Sample x = batch.sample(n);
    if (!x.fits() || x.steps == 0 || scale[n] == T(0)) return;
    // two rows of beta, the chains, and what the lattice has; and at each step alpha and the posterior probability
    constexpr int64_t kFixed = 2 * sizeof(double) + 2 * sizeof(int32_t) + Lattice<S>::kBytes;
    Memory<Team> memory(team, x.width(), kFixed, sizeof(double) + sizeof(T) + Lattice<S>::kStepBytes);
    const bool inside = memory.steps() > 0;
    const int together = inside ? memory.steps() : 1;
    const int64_t states = x.states(), width = x.width(), room = inside ? width : batch.room();
    double* rows = inside ? memory.template take<double>(2) : beta + x.row;
    double* read = inside ? memory.template take<double>(together) : nullptr;
    const Lattice<S> lattice = inside ? samples.in(memory) : samples.of(x);
    T* posterior = inside ? memory.template take<T>(together) : this->posterior + x.row;
    const Chains chains = inside ? Chains{memory.template take<int32_t>(1), memory.template take<int32_t>(1)}
                                 : Chains{first + x.row, next + x.row};
    lattice.prepare(x, team);
    link(x, lattice.label, chains, team);

    const double* start = alpha + (batch.steps + 1) * x.row + kBefore;
    double total = Forward<S>::log_likelihood(start + x.steps * width, x);
    // Mirrors the row before the first step; the two places behind the last state stay -inf.
    team.each(width, [=](int64_t s) { rows[s] = rows[room + s] = s == states - 1 ? 0.0 : -INFINITY; });
    double *after = rows + x.steps % 2 * room, *now = rows + (x.steps + 1) % 2 * room;
    for (int64_t end = x.steps; end > 0; end -= together) {
      const int64_t from = end > together ? end - together : 0;
      const int steps = int(end - from);
      const double* stored = start + (from + 1) * width;
      if (inside) team.each(states, [=](int64_t s) { copy_steps<K>(stored + s, width, read + s, width, steps); });
      lattice.read_scores(x, n, from, steps, team);
      for (int k = steps - 1; k >= 0; k--) {
        team.sync();  // the row after is complete
        const double *ahead = (inside ? read : stored) + k * width, *skip = lattice.skip;
        T *score = lattice.score + k * width, *q = posterior + k * width;
        team.each(states, [=](int64_t s) {
          double beyond = log_sum_exp<T>(after[s], after[s + 1], after[s + 2] + skip[s + 2]);
          q[s] = exp(T(ahead[s] + beyond - total));
          now[s] = beyond + double(score[s]);
        });
        team.each(states, [=](int64_t s) { score[s] = exp(score[s]); });
        double* other = after;
        after = now, now = other;
      }
      write<K>(x, lattice.label, chains, n, from, steps, lattice.score, posterior, team);
      team.sync();  // before what was read is written again
    }
  }

 private:
  struct Chains {
    int32_t *first, *next;
  };
  // Chains of the states of one label, so that one thread adds them up, in order. Blanks are added up by all threads.
  template <class Team>
  HD void link(const Sample& x, const int32_t* label, const Chains& chains, Team team) const {
    for (int64_t s = 2 * team.rank() + 1; s < x.states(); s += 2 * team.size()) {
      int64_t before = s - 2, after = s + 2;
      while (before > 0 && label[before] != label[s]) before -= 2;
      while (after < x.states() && label[after] != label[s]) after += 2;
      chains.first[s] = before < 0 && label[s] != samples.batch.blank;
      chains.next[s] = after < x.states() ? int32_t(after) : 0;
    }
  }
  // The gradients of a few steps, from the probability and the posterior probability of each state.
  template <int K, class Team>
  HD void write(const Sample& x, const int32_t* label, const Chains& chains, int64_t n, int64_t t, int steps,
                const T* p, const T* q, Team team) const {
    int32_t blank = int32_t(samples.batch.blank);
    int64_t width = x.width();
    // all threads have written theirs when this has its sums
    T sum[K];
    team.sums(x.states(), sum,
              [=](int64_t s, int k) { return label[s] == blank && (K == 1 || k < steps) ? q[k * width + s] : T(0); });
    S* frame = static_cast<S*>(grad.data) + t * grad.stride[0] + n * grad.stride[1];
    T factor = scale[n];
    auto put = [&](int64_t s) {
      LOSSREG_UNROLL
      for (int k = 0; k < K; k++)
        if (K == 1 || k < steps)
          frame[k * grad.stride[0] + label[s] * grad.stride[2]] = Narrow<S>::from(factor * (p[k * width + s] - sum[k]));
    };
    if (team.rank() == 0) put(0);
    for (int64_t s = 2 * team.rank() + 1; s < x.states(); s += 2 * team.size()) {
      if (!chains.first[s]) continue;
      LOSSREG_UNROLL
      for (int k = 0; k < K; k++) sum[k] = T(0);
      for (int64_t same = s; same > 0; same = chains.next[same]) {
        LOSSREG_UNROLL
        for (int k = 0; k < K; k++)
          if (K == 1 || k < steps) sum[k] += q[k * width + same];
      }
      put(s);
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
}  // namespace lossreg
