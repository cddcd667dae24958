#pragma once
// The RNN transducer (Graves, arXiv 1211.3711): what its kernels do with the logits of one step, and with one sample's
// lattice. The op over them is in standalone/transducer.h.
#include "../../skeletons/rowwise/formula.h"
#include "../shared/class_rows.h"
#include "../shared/lattice.h"

namespace lossreg {
namespace transducer {

using lattice::Compute, lattice::kMostSteps, lattice::Memory;

// A sample's lattice has a node (t, u) for each step t and each number u of labels that were emitted before it. From a
// node, the blank leads on to (t + 1, u), and the next label to (t, u + 1). A path ends with the blank of the last
// node.
struct Sample {
  int64_t steps, labels;
  bool valid;  // are its lengths?
};

struct Batch {
  Operand logits;   // strides of sample, step, labels and class
  Operand targets;  // of sample and label
  Operand logit_lengths, target_lengths;
  int64_t samples, steps, width;  // of the logits; the width of a lattice is the most labels and 1
  int64_t classes, blank;

  HD int64_t nodes() const { return samples * steps * width; }
  HD Sample sample(int64_t n) const {
    Sample x;
    x.steps = get<int64_t>(logit_lengths, n * logit_lengths.stride[0]);
    x.labels = get<int64_t>(target_lengths, n * target_lengths.stride[0]);
    x.valid = x.steps >= 0 && x.steps <= steps && x.labels >= 0 && x.labels < width;
    // what is no length is not computed with
    if (!x.valid) x.steps = x.labels = 0;
    return x;
  }
  // The label that leads on from a node with u before it; -1 where it is no class.
  HD int64_t label(int64_t n, int64_t u) const {
    const int64_t c = get<int64_t>(targets, n * targets.stride[0] + u * targets.stride[1]);
    return c >= 0 && c < classes ? c : -1;
  }
  // Of an array of the lattices' size, where the nodes of an anti-diagonal t + u = d lie, in the order of u: side by
  // side, because they are computed together. Two diagonals that are `steps` apart share a row, and no column of it.
  HD int64_t diagonal(int64_t n, int64_t d) const {
    return (n * steps + int64_t(uint32_t(d) % uint32_t(steps))) * width;
  }
  HD int64_t place(int64_t n, int64_t t, int64_t u) const { return diagonal(n, t + u) + u; }
};

// log(e^a + e^b), -inf where both are.
template <class T>
HD double log_add(double a, double b) {
  const double high = a > b ? a : b, low = a > b ? b : a;
  const double from = high == -INFINITY ? 0.0 : high;
  return high + double(log(T(1) + exp_negative(T(low - from))));
}

// One row of logits, or of their gradient.
template <class S, int L>
using Row = Scores<Compute<S>, S, L>;

template <class S, int L>
HD Row<S, L> row_of(const Operand& o, int64_t n, int64_t t, int64_t u) {
  return {static_cast<S*>(o.data) + n * o.stride[0] + t * o.stride[1] + u * o.stride[2], 0, o.stride[3]};
}
// Calls use(u, team) for every u < n: the rows of one step, shared out. Few classes are too few for a part of a team.
template <class Team, class Use>
HD void each_row_of_step(int64_t n, int64_t classes, const Team& team, Use use) {
  if constexpr (Team::kMemory > 0) {
    if (classes < 64) {
      for (int64_t u = team.rank(); u < n; u += team.size()) use(u, Alone{});
      return;
    }
  }
  team.each_part(n, use);
}

// The log-sum-exp of a row, for every thread of the team.
template <class S, int L, class Team>
HD LogSum<Compute<S>> log_sum_exp_of(const Row<S, L>& x, int64_t classes, const Team& team) {
  using T = Compute<S>;
  T max = LogSumExp<T>::empty().max, sum = T(0);
  if constexpr (Row<S, L>::kPacked) {
    each_strip(x, 0, x.step == 1, classes, team, [&](int64_t c, auto n) {
      T z[L];
      x.read(0, c, n, z);
      LOSSREG_UNROLL
      for (int j = int(n); j < L; j++) z[j] = -T(INFINITY);
      add_exponentials<L>(max, sum, z);
    });
    const T top = team.max(max);
    sum = team.sum(sum * exp_negative(max - top));
    max = top;
  } else {
    // A loop over vectors takes no exponential of what only raises the maximum; the second time, the row is in cache.
    T top[L], total[L] = {}, buffer[L];
    for (int j = 0; j < L; j++) top[j] = max;
    each_strip(x, 0, true, classes, team, [&](int64_t c, int n) {
      const T* z = x.read(0, c, n, buffer);
      for (int j = 0; j < n; j++) top[j] = greater(top[j], z[j]);
    });
    for (int j = 0; j < L; j++) max = greater(max, top[j]);
    each_strip(x, 0, true, classes, team, [&](int64_t c, int n) {
      const T* z = x.read(0, c, n, buffer);
      for (int j = 0; j < n; j++) total[j] += exp_negative(z[j] - max);
    });
    sum = T(lane_sum(total));
  }
  return {max, log_of_sum(sum, max)};
}
// log p of a class.
template <class T>
HD T log_probability(LogSum<T> lse, T logit) {
  return (logit - lse.high) - lse.low;
}

// What is kept for the backward pass, a number for each node. Without a backward pass only the backward variables are
// there, because the loss is one of them.
struct State {
  double *alpha, *beta;  // forward and backward variables
  double *high, *low;    // the log-sum-exp of a node's logits

  static State of(double* data, int64_t nodes, bool keep) {
    if (!keep) return {nullptr, data, nullptr, nullptr};
    return {data, data + nodes, data + 2 * nodes, data + 3 * nodes};
  }
  HD bool is_kept() const { return alpha != nullptr; }
};
// log p of the two ways that lead on from each node; NaN for a label that is no class.
template <class T>
struct Ways {
  T *blank, *label;
};

// What the lattices need of the logits, for each step of each sample. What is kept where no node is, is 0.
template <class S, int L>
struct Normalise {
  using T = Compute<S>;
  Batch batch;
  State state;
  Ways<T> ways;

  template <class Team>
  HD void operator()(int64_t i, Team team) const {
    const int64_t n = i / batch.steps, t = i - n * batch.steps;
    const Sample x = batch.sample(n);
    const int64_t nodes = t < x.steps ? x.labels + 1 : 0;
    if (state.is_kept()) {
      for (int64_t u = nodes + team.rank(); u < batch.width; u += team.size()) {
        const int64_t place = batch.place(n, t, u);
        state.alpha[place] = state.beta[place] = state.high[place] = state.low[place] = 0;
      }
    }
    each_row_of_step(nodes, batch.classes, team, [&](int64_t u, auto part) {
      const auto row = row_of<S, L>(batch.logits, n, t, u);
      const LogSum<T> lse = log_sum_exp_of<S, L>(row, batch.classes, part);
      if (part.rank() != 0) return;
      const int64_t place = batch.place(n, t, u), label = u < x.labels ? batch.label(n, u) : -1;
      ways.blank[place] = log_probability(lse, row.at(0, batch.blank));
      ways.label[place] = label < 0 ? T(NAN) : log_probability(lse, row.at(0, label));
      if (state.is_kept()) state.high[place] = double(lse.high), state.low[place] = double(lse.low);
    });
  }
};

// The variables of one sample's lattice, a diagonal at a time: the backward ones and the loss, or the forward ones,
// which no loss needs. A forward variable is the logarithm of the probability of all paths from the first node to this
// one, a backward variable that of all paths from this node through the last blank.
template <class T>
struct Lattice {
  Batch batch;
  State state;
  Ways<T> ways;
  Operand losses;

  // Of the sample i, or of sample i - samples.
  template <class Team>
  HD void operator()(int64_t i, Team team) const {
    const bool forward = i >= batch.samples;
    const int64_t n = forward ? i - batch.samples : i;
    const Sample x = batch.sample(n);
    if (x.steps > 0) sweep(n, x, forward, team);
    if (!forward && team.rank() == 0) put(losses, n, 0.0 - log_likelihood(n, x));
  }

  // Without a step there is one path, of no label.
  HD double log_likelihood(int64_t n, const Sample& x) const {
    if (!x.valid) return NAN;
    if (x.steps == 0) return x.labels > 0 ? -INFINITY : 0.0;
    return state.beta[batch.place(n, 0, 0)];
  }

 private:
  template <class Team>
  HD void sweep(int64_t n, const Sample& x, bool forward, Team team) const {
    constexpr int K = kMostSteps<Team>;
    const int64_t steps = x.steps, labels = x.labels, width = labels + 1, diagonals = steps + labels;
    double* lattice = forward ? state.alpha : state.beta;
    const T *blank = ways.blank, *label = ways.label;
    // two rows in turn, and the scores of a few diagonals
    Memory<Team> memory(team, width, 2 * sizeof(double), 2 * sizeof(T));
    const bool inside = memory.steps() > 0;
    const int together = inside ? memory.steps() : 1;
    double* rows = inside ? memory.template take<double>(2) : nullptr;
    T* blanks = inside ? memory.template take<T>(together) : nullptr;
    T* next = inside ? memory.template take<T>(together) : nullptr;

    // the first node, or the last one
    const int64_t first = forward ? 0 : labels, at = batch.diagonal(n, forward ? 0 : diagonals - 1);
    if (team.rank() == 0) {
      const double start = forward ? 0.0 : double(blank[at + first]);
      lattice[at + first] = start;
      if (inside) rows[first] = start;
    }
    double *before = inside ? rows : lattice + at, *now = inside ? rows + width : nullptr;
    const int64_t way = forward ? 1 : -1;
    for (int64_t j = 1; j < diagonals; j += together) {
      const int count = int(diagonals - j < together ? diagonals - j : together);
      // Forward, what leads to a node is a score of the diagonal before it; backward, one of its own.
      const int64_t begin = forward ? j - 1 : diagonals - 1 - j;
      if (inside) {
        const Batch& b = batch;
        team.each(width, [=](int64_t u) {
          T value[2][K];
          LOSSREG_UNROLL
          for (int k = 0; k < K; k++) {
            if (k >= count) continue;
            const int64_t place = b.diagonal(n, begin + way * k) + u;
            value[0][k] = blank[place], value[1][k] = label[place];
          }
          LOSSREG_UNROLL
          for (int k = 0; k < K; k++)
            if (k < count) blanks[k * width + u] = value[0][k], next[k * width + u] = value[1][k];
        });
      }
      for (int k = 0; k < count; k++) {
        team.sync();  // the row before is complete, and so are the scores
        const int64_t score = batch.diagonal(n, begin + way * k), d = begin + way * k + (forward ? 1 : 0);
        const T* of_blank = inside ? blanks + k * width : blank + score;
        const T* of_label = inside ? next + k * width : label + score;
        double* kept = lattice + batch.diagonal(n, d);
        if (!inside) now = kept;
        const int64_t low = d < steps ? 0 : d - steps + 1, high = d < labels ? d : labels;
        const double* last = before;
        double *to = now, *also = inside ? kept : nullptr;
        team.each(high - low + 1, [=](int64_t c) {
          const int64_t u = low + c, t = d - u;
          const bool by_blank = forward ? t > 0 : t < steps - 1, by_label = forward ? u > 0 : u < labels;
          const double stay = by_blank ? last[u] + double(of_blank[u]) : -INFINITY;
          const double move = by_label ? last[u - way] + double(of_label[forward ? u - 1 : u]) : -INFINITY;
          to[u] = log_add<T>(stay, move);
          if (also) also[u] = to[u];
        });
        now = before, before = to;
      }
      if (inside) team.sync();  // before what was read is written again
    }
  }
};

// The gradient in the logits of each step of each sample. In those of a node it is
//   the posterior probability of the node, times p, less those of the blank, and of the label, that lead on from it.
template <class S, int L>
struct Slopes {
  using T = Compute<S>;
  Batch batch;
  State state;
  Operand grad_output, grad;
  double divisor;  // of the mean
  T bound;         // no slope of a sample's loss is further from 0

  template <class Team>
  HD void operator()(int64_t i, Team team) const {
    const int64_t n = i / batch.steps, t = i - n * batch.steps;
    const Sample x = batch.sample(n);
    const double total = x.steps > 0 ? state.beta[batch.place(n, 0, 0)] : 0.0;
    const T scale = T(get<double>(grad_output, n * grad_output.stride[0]) / divisor);
    // the logits of no node, and those of a sample without a path, are not read
    const T fill = x.valid ? T(0) : T(NAN);
    const int64_t nodes = t < x.steps && total != -INFINITY ? x.labels + 1 : 0;
    each_row_of_step(batch.width, batch.classes, team, [&](int64_t u, auto part) {
      const auto row = row_of<S, L>(batch.logits, n, t, u), to = row_of<S, L>(grad, n, t, u);
      Node node{};
      if (u < nodes) node = posteriors(n, x, t, u, row, total);
      if (u >= nodes || node.through == T(0)) {
        each_strip(to, 0, to.step == 1, batch.classes, part, [&](int64_t c, auto count) {
          T y[L];
          LOSSREG_UNROLL
          for (int j = 0; j < count; j++) y[j] = fill;
          to.write(0, c, count, y);
        });
        return;
      }
      each_strip(row, 0, row.packs_with(to, 0), batch.classes, part, [&](int64_t c, auto count) {
        T buffer[L], y[L];
        const T* z = row.read(0, c, count, buffer);
        const int32_t blank = int32_t(batch.blank - c), label = int32_t(node.label - c);
        LOSSREG_UNROLL
        for (int j = 0; j < count; j++) {
          T d = node.through * exp_negative(log_probability(node.lse, z[j]));
          d -= j == blank ? node.by_blank : T(0);
          d -= j == label ? node.by_label : T(0);
          y[j] = clamp(d, -bound, bound) * scale;
        }
        to.write(0, c, count, y);
      });
    });
  }

 private:
  struct Node {
    T through, by_blank, by_label;  // posterior probabilities, of a path that goes through it and by which way on
    LogSum<T> lse;
    int64_t label;  // -1: none
  };
  HD Node posteriors(int64_t n, const Sample& x, int64_t t, int64_t u, const Row<S, L>& row, double total) const {
    const int64_t here = batch.place(n, t, u);
    const double before = state.alpha[here] - total;
    Node node;
    node.lse = {T(state.high[here]), T(state.low[here])};
    node.label = u < x.labels ? batch.label(n, u) : -1;
    double behind_blank = u == x.labels ? 0.0 : -INFINITY, behind_label = -INFINITY;
    if (t + 1 < x.steps) behind_blank = state.beta[batch.place(n, t + 1, u)];
    if (u < x.labels) behind_label = state.beta[batch.place(n, t, u + 1)];
    const T blank = log_probability(node.lse, row.at(0, batch.blank));
    const T label = node.label < 0 ? T(0) : log_probability(node.lse, row.at(0, node.label));
    node.through = exp(T(before + state.beta[here]));
    node.by_blank = exp(T(before + behind_blank + double(blank)));
    node.by_label = exp(T(before + behind_label + double(label)));
    return node;
  }
};

}  // namespace transducer
}  // namespace lossreg
