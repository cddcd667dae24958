#pragma once
// One thread's part of the CPU's row kernels. Where rows lie next to each other in memory, a tile of rows is taken
// together and the vectors run across rows; else one row at a time, and the vectors run along its classes. Either way
// the data comes from memory once: the second pass over a tile finds it in cache.
#include <memory>

#include "../../cpu/stream.h"
#include "cpu_loops.h"
#include "kernel.h"

namespace lossreg::cpu {

constexpr int64_t kRowTile = 2048;          // rows taken together, at most, where their scores are read
constexpr int64_t kTileElements = 1 << 16;  // rows * classes of a tile, about

// One thread's work on a problem: its buffers, and the tiles of rows.
template <class T, class F, int Mode>
class RowWorker {
  // Without scores to hold in cache a tile is long: its planes of gradients are then written in long runs.
  static constexpr int64_t kRows = F::softmax ? kRowTile : 2 * kRowTile;
  // Classes at once, across rows: planes are read side by side, and what is known of a row is read once for all. Where
  // a logit takes more time than memory does, one: the loop stays small enough to become vectors.
  static constexpr int kSummed = F::curved ? 1 : 8, kGraded = F::curved ? 1 : 4;

 public:
  RowWorker(const F& f, const Rows& rows, const std::vector<T>& weights)
      : f_(f), r_(rows), weights_(weights), tile_(tile_rows(rows)) {
    const bool across = r_.across_rows();
    width_ = across ? tile_ : 1;
    if (F::softmax) buffer_.reset(new T[size_t(r_.classes * width_)]), planes_.resize(size_t(r_.classes));
    if (F::softmax || !across) out_.reset(new T[size_t(across ? kGraded * width_ : r_.classes)]);
    if (F::uses_shares(Mode) && r_.it.operand[kTarget].dtype <= DType::float16) {
      target_buffer_.reset(new T[size_t(r_.classes * width_)]);
      target_planes_.resize(size_t(r_.classes));
    }
    std::fill(weight_, weight_ + tile_, T(1));
    if (!across) ones_.assign(size_t(r_.classes), T(1));
  }

  // Rows of a tile; a chunk of work is a fixed number of them, so that sums do not depend on the threads.
  static int64_t tile_rows(const Rows& r) {
    int64_t n = kTileElements / std::max<int64_t>(r.classes, 1);
    int64_t most = F::softmax || !r.across_rows() ? std::min(kRowTile, std::max<int64_t>(n, 16)) : kRows;
    return std::max<int64_t>(1, std::min(most, r.it.numel));
  }

  struct Sums {
    double loss = 0, normaliser = 0;
    int64_t bad_class = kNone;  // a class index that is neither ignored nor a class
    double suspect = 0;         // a score that a margin was not made for
  };
  static constexpr int64_t kNone = INT64_MIN;

  void forward(int64_t begin, int64_t end, Sums& sums) {
    each_run(begin, end, [&](int64_t n, const int64_t* offset) {
      read_targets(n, offset, sums);
      if constexpr (F::softmax) {
        if (!r_.across_rows()) {
          read_scores(n, offset);
          with_rows(kInput, [&](auto* tag) {
            using S = std::remove_pointer_t<decltype(tag)>;
            for (int64_t i = 0; i < n; i++) statistics_of_row<S>(i, offset);
          });
        } else {
          if constexpr (F::has_margin) read_scores(n, offset);
          statistics_across(n, offset);
          if constexpr (!F::has_margin) read_scores(n, offset);  // which are in cache now
        }
      } else {
        read_scores(n, offset);
      }
      if constexpr (F::has_margin) look_at_scores(n, sums);
      read_weights(n);
      finish(n, offset, sums);
    });
  }

  void grad(int64_t begin, int64_t end, Sums& sums) {
    each_run(begin, end, [&](int64_t n, const int64_t* offset) {
      read_targets(n, offset, sums);
      if constexpr (!F::softmax) {
        if (r_.zeroed) return grad_of_targets(n, offset);
      }
      if (r_.across_rows()) return grad_across(n, offset);
      with_rows(kGradInput, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        if constexpr (F::uses_shares(Mode)) {
          std::fill(max_, max_ + n, T(0));
          for (int64_t i = 0; i < n; i++) shares_of_row<S>(i, offset, read_row<S>(kInput, i, offset, buffer_));
        }
        coefficients(n, offset);
        for (int64_t i = 0; i < n; i++) grad_of_row<S>(i, offset);
      });
    });
  }

  void share_grad(int64_t begin, int64_t end) {
    if constexpr (takes_probabilities<F>) {
      each_run(begin, end, [&](int64_t n, const int64_t* offset) {
        for (int64_t i = 0; i < n; i++) share_grad_of_row(i, offset);
      });
    }
  }

 private:
  using Buffer = std::unique_ptr<T[]>;  // what is written before it is read

  template <class Run>
  void each_run(int64_t begin, int64_t end, Run run) {
    int64_t inner = r_.it.dims ? r_.it.size[0] : 1;
    for (int64_t at = begin; at < end;) {
      int64_t n = std::min({end - at, tile_, inner - at % inner});
      int64_t offset[kRowOperands];
      r_.it.offsets(at, offset);
      run(n, offset);
      at += n;
    }
  }
  const Operand& operand(RowOperand k) const { return r_.it.operand[k]; }
  int64_t stride(RowOperand k) const { return r_.it.dims ? operand(k).stride[0] : 0; }
  // Row i of the run, class c.
  int64_t place(RowOperand k, const int64_t* offset, int64_t i, int64_t c) const {
    return offset[k] + i * stride(k) + c * r_.class_stride[k];
  }
  T scalar(RowOperand k, int64_t at) const {
    T value;
    return *load(operand(k).dtype, operand(k).data, at, int64_t(1), &value, 1);
  }
  template <class S>
  void put(RowOperand k, int64_t at, S value) const {
    T x = T(value);
    store(operand(k).dtype, operand(k).data, at, int64_t(1), &x, 1);
  }

  void read_targets(int64_t n, const int64_t* offset, Sums& sums) {
    if constexpr (Mode == F::probability_mode) {
      std::fill(index_, index_ + n, -1);
      std::fill(valid_, valid_ + n, 1);
    } else {
      int64_t raw[kRows];
      const int64_t* t = load(operand(kTarget).dtype, operand(kTarget).data, offset[kTarget], stride(kTarget), raw, n);
      if (read_classes(t, f_.ignore_index, r_.classes, index_, valid_, n))
        for (int64_t i = 0; i < n; i++)
          if (index_[i] < 0 && t[i] != f_.ignore_index) sums.bad_class = t[i];
    }
  }

  // The tile's classes as arrays over its rows.
  void read_planes(RowOperand k, int64_t n, const int64_t* offset, const Buffer& buffer,
                   std::vector<const T*>& planes) {
    for (int64_t c = 0; c < r_.classes; c++) planes[c] = read_plane(k, n, offset, c, buffer.get() + c * width_);
  }
  const T* read_plane(RowOperand k, int64_t n, const int64_t* offset, int64_t c, T* buffer) const {
    return load(operand(k).dtype, operand(k).data, place(k, offset, 0, c), stride(k), buffer, n);
  }
  template <class S>
  const S* read_row(RowOperand k, int64_t i, const int64_t* offset, const Buffer& buffer) {
    const Operand& o = operand(k);
    S* to = nullptr;
    if constexpr (std::is_same_v<S, T>) to = buffer.get();
    return load(o.dtype, o.data, place(k, offset, i, 0), r_.class_stride[k], to, r_.classes);
  }
  // use(null pointer of what the loops read). Along rows: bfloat16 where the scores, the target's probabilities and
  // operand `last` are that, side by side; else T, into which a row is copied where it isn't T.
  template <class Use>
  void with_rows(RowOperand last, Use use) {
    auto packed = [&](RowOperand k) { return is_bfloat16(k) && r_.class_stride[k] == 1; };
    if constexpr (std::is_same_v<T, float>)
      if ((!F::softmax || packed(kInput)) && packed(last) && (target_planes_.empty() || packed(kTarget)))
        return use(static_cast<BFloat16*>(nullptr));
    use(static_cast<T*>(nullptr));
  }
  // Across rows: bfloat16 where the scores and operand `last` are that, side by side, and a class has neither a share
  // nor a bias.
  template <class Use>
  void with_planes(RowOperand last, Use use) {
    if constexpr (std::is_same_v<T, float> && !F::uses_shares(Mode) && !F::has_bias)
      if (is_bfloat16(kInput) && stride(kInput) == 1 && is_bfloat16(last) && stride(last) == 1)
        return use(static_cast<BFloat16*>(nullptr));
    use(static_cast<T*>(nullptr));
  }
  bool is_bfloat16(RowOperand k) const { return operand(k).dtype == DType::bfloat16; }
  // The target's probabilities of class c; without them the scores, which the loops load and ignore.
  const T* target_plane(int64_t c) const { return target_planes_.empty() ? planes_[c] : target_planes_[c]; }
  T weight(int64_t c) const { return weights_.empty() ? T(1) : weights_[c]; }
  const T* weight_row() const { return weights_.empty() ? ones_.data() : weights_.data(); }

  void statistics_across(int64_t n, const int64_t* offset) {
    std::fill(max_, max_ + n, LogSumExp<T>::empty().max);
    std::fill(log_sum_, log_sum_ + n, T(0));
    if constexpr (F::has_bias) {
      read_planes(kInput, n, offset, buffer_, planes_);
      for (int64_t c = 0; c < r_.classes; c++) raise_max(f_, max_, planes_[c], weight(c), n);
      for (int64_t c = 0; c < r_.classes; c++) add_exp(f_, log_sum_, max_, planes_[c], weight(c), n);
    } else {
      with_planes(kInput, [&](auto* tag) { sum_planes<std::remove_pointer_t<decltype(tag)>>(n, offset); });
    }
    log_all(log_sum_, max_, n);
    if constexpr (F::uses_shares(Mode)) shares_across(n, offset);
  }
  template <class S>
  void sum_planes(int64_t n, const int64_t* offset) {
    const Targets<T> y{index_, logits()};
    each_block<kSummed>(r_.classes, [&](auto block, int64_t c) {
      const S* x[block];
      for (int k = 0; k < block; k++) x[k] = plane_of<S>(n, offset, c + k);
      add_classes<block>(f_, max_, log_sum_, y, x, int32_t(c), n);
    });
  }
  // Class c of the run's scores; as T, it stays there for the shares.
  template <class S>
  const S* plane_of(int64_t n, const int64_t* offset, int64_t c) {
    if constexpr (std::is_same_v<S, T>)
      return planes_[c] = read_plane(kInput, n, offset, c, buffer_.get() + c * width_);
    else return static_cast<const S*>(operand(kInput).data) + place(kInput, offset, 0, c);
  }
  // use(how many, the first) over the classes: K at once, then one by one.
  template <int K, class Use>
  static void each_block(int64_t classes, Use use) {
    int64_t c = 0;
    for (; c + K <= classes; c += K) use(std::integral_constant<int, K>{}, c);
    for (; c < classes; c++) use(std::integral_constant<int, 1>{}, c);
  }
  void shares_across(int64_t n, const int64_t* offset) {
    if (!target_planes_.empty()) read_planes(kTarget, n, offset, target_buffer_, target_planes_);
    std::fill(mass_, mass_ + n, T(0));
    std::fill(dot_, dot_ + n, T(0));
    for (int64_t c = 0; c < r_.classes; c++)
      add_shares<T, Mode>(f_, mass_, dot_, max_, planes_[c], target_plane(c), weight(c), r_.classes, n);
  }

  template <class S>
  void statistics_of_row(int64_t i, const int64_t* offset) {
    const S* x = read_row<S>(kInput, i, offset, buffer_);
    const T* w = weight_row();
    // with a margin the target's logit is no function of its score alone: the loops pass it by
    const bool apart = F::has_margin && index_[i] >= 0;
    const int64_t y = apart ? index_[i] : r_.classes, rest = std::min(y + 1, r_.classes);
    T max = apart ? logits()[i] : T(-INFINITY);
    max = max_of(f_, max, x, w, y);
    max = max_of(f_, max, x + rest, w + rest, r_.classes - rest);
    double sum = apart ? double(exp_negative(logits()[i] - max)) : 0.0;
    sum += sum_exp_of(x, w, max, y) + sum_exp_of(x + rest, w + rest, max, r_.classes - rest);
    max_[i] = max;
    log_sum_[i] = log_of_sum(T(sum), max);
    if constexpr (F::uses_shares(Mode)) shares_of_row(i, offset, x);
  }
  // Tiles with a sum in double: a float would lose digits over a large vocabulary.
  template <class S>
  double sum_exp_of(const S* x, const T* w, T max, int64_t n) {
    double sum = 0;
    for (int64_t c = 0; c < n; c += kTile) sum += double(sum_exp(f_, max, x + c, w + c, std::min(kTile, n - c)));
    return sum;
  }
  // The target's probabilities of one row; without them its scores, which the loops load and ignore.
  template <class S>
  const S* target_row(int64_t i, const int64_t* offset, const S* scores) {
    return target_planes_.empty() ? scores : read_row<S>(kTarget, i, offset, target_buffer_);
  }
  template <class S>
  void shares_of_row(int64_t i, const int64_t* offset, const S* x) {
    const S* t = target_row(i, offset, x);
    double mass = 0, dot = 0;
    for (int64_t c = 0; c < r_.classes; c += kTile) {
      T m = 0, d = 0;
      sum_shares<T, Mode>(f_, &m, &d, max_[i], x + c, t + c, weight_row() + c, r_.classes,
                          std::min(kTile, r_.classes - c));
      mass += double(m);
      dot += double(d);
    }
    mass_[i] = T(mass);
    dot_[i] = T(dot);
  }

  // Score, logit and weight of each row's target class.
  void read_scores(int64_t n, const int64_t* offset) {
    const Operand& o = operand(kInput);
    int64_t across = stride(kInput), along = r_.class_stride[kInput];
    with_floating_storage(o.dtype, [&](auto* tag) {
      const auto* x = static_cast<const std::remove_pointer_t<decltype(tag)>*>(o.data) + offset[kInput];
      for (int64_t i = 0; i < n; i++) score_[i] = widen<T>(x[i * across + std::max(index_[i], 0) * along]);
    });
    if constexpr (kOwnLogits) target_logits(f_, logit_, score_, n);
  }
  // Those of the target classes are at hand.
  void look_at_scores(int64_t n, Sums& sums) const {
    for (int64_t i = 0; i < n; i++)
      if (index_[i] >= 0 && f_.is_suspect(score_[i])) sums.suspect = double(score_[i]);
  }
  void read_weights(int64_t n) {
    if (!weights_.empty())
      for (int64_t i = 0; i < n; i++) weight_[i] = index_[i] < 0 ? T(1) : weights_[size_t(index_[i])];
  }
  // Are the targets' logits other numbers than their scores?
  static constexpr bool kOwnLogits = F::has_margin || F::curved;
  const T* logits() const { return kOwnLogits ? logit_ : score_; }
  RowArrays<T> arrays() const { return {mass_, dot_, score_, logits(), weight_, index_, valid_}; }

  void finish(int64_t n, const int64_t* offset, Sums& sums) {
    T loss[kRows];
    double total[2] = {0, 0};
    finish_rows<T, Mode>(f_, arrays(), max_, log_sum_, loss, total, r_.classes, n);
    sums.loss += total[0];
    sums.normaliser += total[1];
    if constexpr (F::softmax) {
      store(DType::float64, operand(kState).data, place(kState, offset, 0, 0), stride(kState), max_, n);
      store(DType::float64, operand(kState).data, place(kState, offset, 0, 1), stride(kState), log_sum_, n);
    }
    const Operand& o = operand(kResult);
    if (o.data) store(o.dtype, o.data, offset[kResult], stride(kResult), loss, n);
  }
  void coefficients(int64_t n, const int64_t* offset) {
    if constexpr (F::has_margin || F::slopes_of_nll) read_scores(n, offset);
    read_weights(n);
    if constexpr (F::softmax) read_state(n, offset);
    T grad_buffer[kRows];
    const Operand& o = operand(kResult);
    const T* grad = load(o.dtype, o.data, offset[kResult], stride(kResult), grad_buffer, n);
    find_coefficients<T, Mode>(f_, arrays(), high_, low_, grad, T(scale()), a_, hit_, rest_, r_.classes, n);
  }
  const double* state() const { return static_cast<const double*>(operand(kState).data); }
  void read_state(int64_t n, const int64_t* offset) {
    for (int64_t i = 0; i < n; i++) {
      high_[i] = T(state()[place(kState, offset, i, 0)]);
      low_[i] = T(state()[place(kState, offset, i, 1)]);
    }
  }
  double scale() const { return r_.mean ? 1.0 / *r_.normaliser : 1.0; }

  void grad_across(int64_t n, const int64_t* offset) {
    if constexpr (F::uses_shares(Mode)) {
      if constexpr (F::softmax) read_planes(kInput, n, offset, buffer_, planes_);
      std::fill(max_, max_ + n, T(0));
      shares_across(n, offset);
    }
    coefficients(n, offset);
    if constexpr (!F::softmax) return scatter_across(n, offset);
    else with_planes(kGradInput, [&](auto* tag) { grad_planes<std::remove_pointer_t<decltype(tag)>>(n, offset); });
  }
  template <class S>
  void grad_planes(int64_t n, const int64_t* offset) {
    const Operand& o = operand(kGradInput);
    const bool direct = o.dtype == dtype_for<S> && stride(kGradInput) == 1;
    each_block<kGraded>(r_.classes, [&](auto block, int64_t c) {
      const S *x[block], *t[block];
      T w[block];
      S* out[block];
      for (int k = 0; k < block; k++) {
        if constexpr (F::uses_shares(Mode)) x[k] = planes_[c + k], t[k] = target_plane(c + k);
        else t[k] = x[k] = plane_of<S>(n, offset, c + k);
        w[k] = weight(c + k);
        out[k] = static_cast<S*>(o.data) + place(kGradInput, offset, 0, c + k);
        if constexpr (std::is_same_v<S, T>)
          if (!direct) out[k] = out_.get() + k * width_;
      }
      grad_classes<block, T, Mode>(f_, {a_, hit_, rest_, high_, low_, index_}, out, x, t, w, int32_t(c), r_.classes, n);
      for (int k = 0; k < block && !direct; k++)
        store(o.dtype, o.data, place(kGradInput, offset, 0, c + k), stride(kGradInput), out[k], n);
    });
  }
  // Without a softmax the gradient is 0 but at the target.
  void scatter_across(int64_t n, const int64_t* offset) {
    const Operand& o = operand(kGradInput);
    with_floating_storage(o.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      S own[kRows], tile[kRows];
      for (int64_t i = 0; i < n; i++) own[i] = Narrow<S>::from(-hit_[i]);
      const int64_t step = stride(kGradInput);
      for (int64_t c = 0; c < r_.classes; c++) {
        S* to = static_cast<S*>(o.data) + place(kGradInput, offset, 0, c);
        scatter_class(step == 1 && !streamed_ ? to : tile, own, index_, int32_t(c), n);
        if (step != 1)
          for (int64_t i = 0; i < n; i++) to[i * step] = tile[i];
        else if (streamed_)
          stream_bytes(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(tile), n * int64_t(sizeof(S)));
      }
    });
  }
  template <class S>
  void grad_of_row(int64_t i, const int64_t* offset) {
    const S* x = F::softmax ? read_row<S>(kInput, i, offset, buffer_) : nullptr;
    const S* t = target_row(i, offset, x);
    const Operand& o = operand(kGradInput);
    int64_t at = place(kGradInput, offset, i, 0), step = r_.class_stride[kGradInput];
    bool direct = o.dtype == dtype_for<S> && step == 1;
    S* out = static_cast<S*>(o.data) + at;
    if constexpr (std::is_same_v<S, T>)
      if (!direct) out = out_.get();
    const bool zero = !F::softmax || (a_[i] == T(0) && rest_[i] == T(0));
    const int32_t y = index_[i];
    T own = hit_[i];  // the target's gradient, from the slope that the loop finds before it is rounded
    const bool rounded = !std::is_same_v<S, T> && !F::has_margin && !zero && y >= 0;
    const T score = F::softmax && y >= 0 ? widen<T>(x[y]) : T(0);  // before the gradient takes the scores' place
    if (rounded) own = target_score_slope(f_, slope_of(i, y, x, t), own, score);
    if (zero) std::memset(out, 0, size_t(r_.classes) * sizeof(S));
    else grad_row<T, Mode>(f_, of_row(i), log_sum_exp(i), out, x, t, weight_row(), r_.classes, r_.classes);
    if (!rounded && y >= 0) own = target_score_slope(f_, widen<T>(out[y]), own, score);
    if (y >= 0) out[y] = Narrow<S>::from(own);
    if constexpr (std::is_same_v<S, T>)
      if (!direct) store(o.dtype, o.data, at, step, out, r_.classes);
  }
  RowCoefficients<T> of_row(int64_t i) const { return {a_[i], hit_[i], rest_[i]}; }
  LogSum<T> log_sum_exp(int64_t i) const { return {high_[i], low_[i]}; }
  template <class S>
  T slope_of(int64_t i, int32_t y, const S* x, const S* t) const {
    T score = widen<T>(x[y]), probability = widen<T>(t[y]), slope;
    grad_row<T, Mode>(f_, of_row(i), log_sum_exp(i), &slope, &score, &probability, weight_row() + y, r_.classes, 1);
    return slope;
  }
  void grad_of_targets(int64_t n, const int64_t* offset) {
    coefficients(n, offset);
    for (int64_t i = 0; i < n; i++)
      if (index_[i] >= 0) put(kGradInput, place(kGradInput, offset, i, index_[i]), -hit_[i]);
  }
  void share_grad_of_row(int64_t i, const int64_t* offset) {
    const LogSum<T> lse{T(state()[place(kState, offset, i, 0)]), T(state()[place(kState, offset, i, 1)])};
    T g = T(double(scalar(kResult, place(kResult, offset, i, 0))) * scale());
    const T* x = read_row<T>(kInput, i, offset, buffer_);
    const T* t = read_row<T>(kTarget, i, offset, target_buffer_);
    for (int64_t c = 0; c < r_.classes; c++) {
      Gradients<T, 2> d = f_.share_grad(nll_of<F>(lse, f_.logit(x[c])), weight(c), t[c], r_.classes);
      if (operand(kGradTarget).data) put(kGradTarget, place(kGradTarget, offset, i, c), g * d.of[0]);
      if (operand(kGradWeight).data) put(kGradWeight, place(kGradWeight, offset, i, c), g * d.of[1]);
    }
  }

  const F f_;
  const Rows& r_;
  const std::vector<T>& weights_;
  const int64_t tile_;
  // Where scores are read too, the reading hides the time of the stores.
  const bool streamed_ =
      !F::softmax && r_.it.numel * r_.classes * size_of(r_.it.operand[kGradInput].dtype) >= kStreamed;
  int64_t width_;
  Buffer buffer_, target_buffer_, out_;
  std::vector<T> ones_;
  std::vector<const T*> planes_, target_planes_;
  T max_[kRows], log_sum_[kRows], mass_[kRows], dot_[kRows];
  T score_[kRows], logit_[kRows], weight_[kRows];
  T a_[kRows], hit_[kRows], rest_[kRows], high_[kRows], low_[kRows];
  int32_t index_[kRows];
  int32_t valid_[kRows];
};

}  // namespace lossreg::cpu
