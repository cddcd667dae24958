#pragma once
// One thread's part of the CPU's row kernels. Where rows lie next to each other in memory, a tile of rows is taken
// together and the vectors run across rows; so they do where the classes lie next to each other but are few, and the
// tile is turned for that; else one row at a time, and the vectors run along its classes. Either way the data comes
// from memory once: the second pass over a tile finds it in cache. Of long rows that are too few for the threads there
// is one worker, whose loops along a row the threads share.
#include <memory>

#include "../../cpu/chunks.h"
#include "../../cpu/stream.h"
#include "cpu_loops.h"
#include "kernel.h"

namespace lossreg::cpu {

constexpr int64_t kRowTile = 2048;                      // rows taken together, at most, where their scores are read
constexpr int64_t kTileElements = 1 << 16;              // rows * classes of a tile, about
constexpr int64_t kTurnedElements = 1 << 13;            // those of a tile that is turned
constexpr int64_t kLeastTurned = 8, kMostTurned = 127;  // classes
constexpr int64_t kLeastShared = 2 * kChunk;            // classes of a row that threads share
constexpr int64_t kPiece = 2 * kTile;                   // of these, those that have a maximum of their own

// One thread's work on a problem: its buffers, and the tiles of rows.
template <class T, class F, int Mode>
class RowWorker {
  // Without scores to hold in cache a tile is long: its planes of gradients are then written in long runs.
  static constexpr int64_t kRows = F::softmax ? kRowTile : 2 * kRowTile;
  // Classes at once, across rows: planes are read side by side, and what is known of a row is read once for all. Where
  // a logit takes more time than memory does, one: the loop stays small enough to become vectors.
  static constexpr int kSummed = F::curved ? 1 : 8, kGraded = F::curved ? 1 : 4;

 public:
  using Computed = T;
  // shared: the threads have this one worker, and each row is divided among them.
  RowWorker(const F& f, const Rows& rows, const std::vector<T>& weights, bool shared)
      : f_(f),
        r_(rows),
        weights_(weights),
        tile_(tile_rows(rows)),
        turned_(turns(rows)),
        shared_(shared),
        piece_(piece_of(rows)) {
    const bool across = across_rows();
    width_ = !across ? 1 : turned_ ? (tile_ + 15) / 16 * 16 + kPadding : tile_;
    if (F::softmax && across) {
      buffer_.reset(new T[size_t(r_.classes * width_)]);
      out_.reset(new T[size_t(std::max(turned_ ? tile_ * r_.classes : 0, kGraded * width_))]);
      planes_.resize(size_t(r_.classes));
    }
    if (F::uses_shares(Mode) && r_.it.operand[kTarget].dtype <= DType::float16) {
      if (across) target_buffer_.reset(new T[size_t(r_.classes * width_)]);
      target_planes_.resize(size_t(r_.classes));
    }
    std::fill(weight_, weight_ + tile_, T(1));
    if (kWeighed && !across && weights_.empty()) ones_.assign(size_t(std::min(kTile, r_.classes)), T(1));
  }

  // Classes whose exponentials are relative to one maximum: all of them, or so many that a thread has some at hand.
  static int64_t piece_of(const Rows& r) { return r.classes < kLeastShared ? std::max<int64_t>(1, r.classes) : kPiece; }
  // Are there so few chunks of rows that threads would wait for others, and is a row long enough to be divided?
  static bool shares(const Rows& r) {
    if (!F::softmax || r.classes < kLeastShared || turns(r) || r.across_rows()) return false;
    const int64_t threads = torch::stable::get_num_threads();
    return threads > 1 && chunks(r.it.numel, tile_rows(r)) < 4 * threads;
  }

  // Rows of a tile; a chunk of work is a fixed number of them, so that sums do not depend on the threads.
  static int64_t tile_rows(const Rows& r) {
    int64_t n = (turns(r) ? kTurnedElements : kTileElements) / std::max<int64_t>(r.classes, 1);
    const bool along = !turns(r) && !r.across_rows(), alone = F::softmax && along;  // rows that are taken one by one
    int64_t most = F::softmax || along ? std::min(kRowTile, std::max<int64_t>(n, alone ? 1 : 16)) : kRows;
    return std::max<int64_t>(1, std::min(most, r.it.numel));
  }

  struct Sums {
    double loss = 0, normaliser = 0;
    int64_t bad_class = kNone;  // a class index that is neither ignored nor a class
    double suspect = 0;         // a score that a margin was not made for
  };
  static constexpr int64_t kNone = INT64_MIN;

  void forward(int64_t begin, int64_t end, Sums& sums) {
    each_run(begin, end, tile_, [&](int64_t n, const int64_t* offset) { forward_of(n, offset, sums); });
  }

  // What the rows add to the mean's denominator, which their scores have no part in.
  void count(int64_t begin, int64_t end, Sums& sums) {
    each_run(begin, end, tile_, [&](int64_t n, const int64_t* offset) {
      read_targets(n, offset, sums);
      read_weights(n);
      for (int64_t i = 0; i < n; i++)
        if (valid_[i]) {
          const Row<T> row{T(0), T(0), T(0), weight_[i], r_.classes};
          sums.normaliser += double(f_.template normaliser<Mode>(row));
        }
    });
  }

  void grad(int64_t begin, int64_t end, Sums& sums) {
    each_run(begin, end, tile_, [&](int64_t n, const int64_t* offset) { grad_of(n, offset, sums); });
  }

  // Both, of so few rows at once that the second finds in cache what the first read, and the exponentials that it
  // computed, where the gradient is made of nothing else.
  void forward_and_grad(int64_t begin, int64_t end, Sums& sums) {
    int64_t rows = tile_;
    if (kOfTerms && !across_rows()) {
      rows = std::min(tile_, std::max<int64_t>(1, kTileElements / 2 / std::max<int64_t>(r_.classes, 1)));
      keeps_terms_ = true;
      piece_max_.resize(size_t(rows * chunks(r_.classes, piece_)));
      // a gradient that memory holds as T takes the terms' place, where they wait
      if (!terms_ && !lies_as<T>(kGradInput)) terms_.reset(new T[size_t(r_.classes * rows)]);
    }
    each_run(begin, end, rows, [&](int64_t n, const int64_t* offset) {
      forward_of(n, offset, sums);
      grad_of(n, offset, sums);
    });
  }

  void share_grad(int64_t begin, int64_t end) {
    if constexpr (takes_probabilities<F>) {
      each_run(begin, end, tile_, [&](int64_t n, const int64_t* offset) {
        for (int64_t i = 0; i < n; i++) share_grad_of_row(i, offset);
      });
    }
  }

 private:
  using Buffer = std::unique_ptr<T[]>;  // what is written before it is read
  // Planes whose distance is a power of two share a few places of a cache.
  static constexpr int64_t kPadding = 16;

  // Are rows turned into planes?
  static bool turns(const Rows& r) {
    return F::softmax && r.it.dims > 0 && r.class_stride[kInput] == 1 && r.it.operand[kInput].stride[0] != 1 &&
           r.classes >= kLeastTurned && r.classes <= kMostTurned;
  }
  bool across_rows() const { return turned_ || r_.across_rows(); }

  // Calls run(n, offset) for [begin, end) in runs of at most so many rows, which are one step apart in memory.
  template <class Run>
  void each_run(int64_t begin, int64_t end, int64_t most, Run run) {
    int64_t inner = r_.it.dims ? r_.it.size[0] : 1;
    for (int64_t at = begin; at < end;) {
      int64_t n = std::min({end - at, most, inner - at % inner});
      int64_t offset[kRowOperands];
      r_.it.offsets(at, offset);
      run(n, offset);
      at += n;
    }
  }
  // Calls use(c, n) for the n classes from c on of each piece of a row, and of each tile of [begin, end).
  template <class Use>
  void each_piece(Use use) const {
    auto pieces = [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; p++) use(p * piece_, std::min(piece_, r_.classes - p * piece_));
    };
    if (shared_) torch::stable::parallel_for(0, chunks(r_.classes, piece_), kChunk / 2 / piece_, pieces);
    else pieces(0, chunks(r_.classes, piece_));
  }
  template <class Use>
  static void each_tile(int64_t begin, int64_t end, Use use) {
    for (int64_t c = begin; c < end; c += kTile) use(c, std::min(kTile, end - c));
  }
  // Adds up what of(c, n) finds of each piece, in their order: the bits don't depend on who computed them.
  template <class Sum, class Of>
  void add_pieces(Sum& sum, Of of) const {
    if (!shared_) return each_piece([&](int64_t c, int64_t n) { sum.add(of(c, n)); });
    std::vector<Sum> parts(size_t(chunks(r_.classes, piece_)));
    each_piece([&](int64_t c, int64_t n) { parts[size_t(c / piece_)] = of(c, n); });
    for (const Sum& part : parts) sum.add(part);
  }

  __attribute__((noinline)) void forward_of(int64_t n, const int64_t* offset, Sums& sums) {
    read_targets(n, offset, sums);
    if constexpr (F::softmax) {
      if (!across_rows()) {
        read_scores(n, offset);
        with_rows(keeps_terms_ ? kGradInput : kInput, [&](auto* tag) {
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
  }
  __attribute__((noinline)) void grad_of(int64_t n, const int64_t* offset, Sums& sums) {
    read_targets(n, offset, sums);
    if constexpr (!F::softmax) {
      if (r_.zeroed) return grad_of_targets(n, offset);
    }
    if (across_rows()) return grad_across(n, offset);
    with_rows(kGradInput, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if constexpr (F::uses_shares(Mode)) {
        std::fill(max_, max_ + n, T(0));
        for (int64_t i = 0; i < n; i++) shares_of_row<S>(i, offset, read_row<S>(kInput, i, offset, buffer_));
      }
      coefficients(n, offset);
      for (int64_t i = 0; i < n; i++) grad_of_row<S>(i, offset);
    });
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
    if (turned_ && r_.class_stride[k] == 1) return turn_rows(k, n, offset, buffer.get(), planes);
    for (int64_t c = 0; c < r_.classes; c++) planes[c] = read_plane(k, n, offset, c, buffer.get() + c * width_);
  }
  // The run's rows, whose classes lie side by side, one after the other: where they lie, or in the buffer.
  const T* read_flat(RowOperand k, int64_t n, const int64_t* offset, T* buffer) const {
    const Operand& o = operand(k);
    if (stride(k) == r_.classes) return load(o.dtype, o.data, offset[k], int64_t(1), buffer, n * r_.classes);
    for (int64_t i = 0; i < n; i++) {
      T* row = buffer + i * r_.classes;
      const T* at = load(o.dtype, o.data, place(k, offset, i, 0), int64_t(1), row, r_.classes);
      if (at != row) std::copy(at, at + r_.classes, row);
    }
    return buffer;
  }
  void turn_rows(RowOperand k, int64_t n, const int64_t* offset, T* buffer, std::vector<const T*>& planes) {
    const Operand& o = operand(k);
    if (o.dtype == dtype_for<T>)
      turn(static_cast<const T*>(o.data) + offset[k], stride(k), buffer, width_, n, r_.classes);
    else turn(read_flat(k, n, offset, out_.get()), r_.classes, buffer, width_, n, r_.classes);
    for (int64_t c = 0; c < r_.classes; c++) planes[c] = buffer + c * width_;
  }
  const T* read_plane(RowOperand k, int64_t n, const int64_t* offset, int64_t c, T* buffer) const {
    return load(operand(k).dtype, operand(k).data, place(k, offset, 0, c), stride(k), buffer, n);
  }
  template <class S>
  const S* read_row(RowOperand k, int64_t i, const int64_t* offset, Buffer& buffer) {
    const Operand& o = operand(k);
    const int64_t at = place(k, offset, i, 0), step = r_.class_stride[k];
    if constexpr (std::is_same_v<S, T>)
      if (!lies_as<T>(k)) {
        T* to = row_buffer(buffer);
        each_piece([&](int64_t c, int64_t n) { load(o.dtype, o.data, at + c * step, step, to + c, n); });
        return to;
      }
    return static_cast<const S*>(o.data) + at;
  }
  // Does memory hold a row's classes as S, side by side? Where it doesn't, a buffer for them, made when it is needed: a
  // lone row may be so long that its memory is new at every call, and costs more than what is computed there.
  template <class S>
  bool lies_as(RowOperand k) const {
    return operand(k).dtype == dtype_for<S> && r_.class_stride[k] == 1;
  }
  T* row_buffer(Buffer& buffer) const {
    if (!buffer) buffer.reset(new T[size_t(r_.classes)]);
    return buffer.get();
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
  // The weights of a tile of classes, from c on. Without weights ones, that every tile has in common, and where a
  // formula asks for none there, none.
  static constexpr bool kWeighed = F::has_bias || F::uses_shares(Mode);
  const T* weights_from(int64_t c) const { return weights_.empty() ? ones_.data() : weights_.data() + c; }

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
    if (turned_) read_planes(kInput, n, offset, buffer_, planes_);
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
      return turned_ ? planes_[c] : planes_[c] = read_plane(kInput, n, offset, c, buffer_.get() + c * width_);
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
    // with a margin the target's logit is no function of its score alone: the loops pass it by
    const bool apart = F::has_margin && index_[i] >= 0;
    const int64_t y = apart ? index_[i] : r_.classes, rest = std::min(y + 1, r_.classes);
    RowSum sum;
    if (apart) sum.add({logits()[i], 1.0});
    add_pieces(sum, [&](int64_t c, int64_t n) {
      const int64_t before = std::clamp(y, c, c + n), after = std::clamp(rest, c, c + n);
      RowSum piece;
      piece.max = max_of(f_, piece.max, x + c, weights_from(c), before - c);
      piece.max = max_of(f_, piece.max, x + after, weights_from(after), c + n - after);
      if (kOfTerms && keeps_terms_) {
        piece_max(i, c) = piece.max;
        piece.sum = sum_terms_of(i, offset, x, piece.max, c, c + n);
      } else {
        piece.sum = sum_exp_in(x, piece.max, c, before) + sum_exp_in(x, piece.max, after, c + n);
      }
      return piece;
    });
    max_[i] = sum.max;
    // where every logit is -inf, the sum is that of e^(-inf + inf)
    log_sum_[i] = sum.sum == 0 ? T(NAN) : log_of_sum(T(sum.sum), sum.max);
    if constexpr (F::uses_shares(Mode)) shares_of_row(i, offset, x);
  }
  // Of logits z, the greatest, and the sum of e^(z - max) in double: a float would lose digits over a large vocabulary.
  struct RowSum {
    T max = LogSumExp<T>::empty().max;
    double sum = 0;
    void add(const RowSum& other) {
      const T top = greater(max, other.max);
      sum = sum * double(exp_negative(max - top)) + other.sum * double(exp_negative(other.max - top));
      max = top;
    }
  };
  template <class S>
  double sum_exp_in(const S* x, T max, int64_t begin, int64_t end) const {
    double sum = 0;
    each_tile(begin, end, [&](int64_t c, int64_t n) { sum += double(sum_exp(f_, max, x + c, weights_from(c), n)); });
    return sum;
  }
  // The same, and the exponentials are kept. While they take their time, the next row comes from memory, and the place
  // of this one's gradient.
  template <class S>
  double sum_terms_of(int64_t i, const int64_t* offset, const S* x, T max, int64_t begin, int64_t end) const {
    double sum = 0;
    each_tile(begin, end, [&](int64_t c, int64_t n) {
      prefetch<false>(kInput, place(kInput, offset, i + 1, c), n);
      if (terms_) prefetch<true>(kGradInput, place(kGradInput, offset, i, c), n);
      sum += double(sum_terms(f_, max, x + c, terms_of(i, offset) + c, n));
    });
    return sum;
  }
  // What the exponentials of a piece are relative to.
  T& piece_max(int64_t i, int64_t c) { return piece_max_[size_t(i * chunks(r_.classes, piece_) + c / piece_)]; }
  template <bool Written>
  void prefetch([[maybe_unused]] RowOperand k, [[maybe_unused]] int64_t at, [[maybe_unused]] int64_t n) const {
#if defined(__GNUC__)
    const auto begin = reinterpret_cast<uintptr_t>(operand(k).data) + uintptr_t(at * size_of(operand(k).dtype));
    for (int64_t b = 0; b < n * size_of(operand(k).dtype); b += kLine)
      __builtin_prefetch(reinterpret_cast<const void*>(begin + uintptr_t(b)), Written, 2);
#endif
  }
  // The target's probabilities of one row; without them its scores, which the loops load and ignore.
  template <class S>
  const S* target_row(int64_t i, const int64_t* offset, const S* scores) {
    return target_planes_.empty() ? scores : read_row<S>(kTarget, i, offset, target_buffer_);
  }
  template <class S>
  void shares_of_row(int64_t i, const int64_t* offset, const S* x) {
    const S* t = target_row(i, offset, x);
    ShareSum total;
    add_pieces(total, [&](int64_t begin, int64_t length) {
      ShareSum piece;
      each_tile(begin, begin + length, [&](int64_t c, int64_t n) {
        T mass = 0, dot = 0;
        sum_shares<T, Mode>(f_, &mass, &dot, max_[i], x + c, t + c, weights_from(c), r_.classes, n);
        piece.add({double(mass), double(dot)});
      });
      return piece;
    });
    mass_[i] = T(total.mass);
    dot_[i] = T(total.dot);
  }

  struct ShareSum {
    double mass = 0, dot = 0;
    void add(const ShareSum& other) {
      mass += other.mass;
      dot += other.dot;
    }
  };

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
    const T* grad = grad_buffer;
    if (o.data) grad = load(o.dtype, o.data, offset[kResult], stride(kResult), grad_buffer, n);
    else std::fill(grad_buffer, grad_buffer + n, T(1));
    find_coefficients<T, Mode>(f_, arrays(), high_, low_, grad, T(scale()), a_, hit_, rest_, r_.classes, n);
  }
  const double* state() const { return static_cast<const double*>(operand(kState).data); }
  void read_state(int64_t n, const int64_t* offset) {
    auto read = [&](int64_t part, T* to) {
      const T* at = load(DType::float64, state(), place(kState, offset, 0, part), stride(kState), to, n);
      if (at != to) std::copy(at, at + n, to);
    };
    read(0, high_);
    read(1, low_);
  }
  double scale() const { return r_.mean ? 1.0 / *r_.normaliser : 1.0; }

  void grad_across(int64_t n, const int64_t* offset) {
    if constexpr (F::softmax)
      if (flat()) return grad_of_rows(n, offset);
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
    if (turned_ && !F::uses_shares(Mode)) read_planes(kInput, n, offset, buffer_, planes_);
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
  // Do the classes of a row lie side by side in all that its gradient is made of?
  bool flat() const {
    const bool probabilities = target_planes_.empty() || r_.class_stride[kTarget] == 1;
    return turned_ && r_.class_stride[kGradInput] == 1 && probabilities;
  }
  // As one array of rows after the other, with vectors along the classes.
  void grad_of_rows(int64_t n, const int64_t* offset) {
    const Operand& o = operand(kGradInput);
    const bool dense = stride(kGradInput) == r_.classes, direct = dense && o.dtype == dtype_for<T>;
    T* out = direct ? static_cast<T*>(o.data) + offset[kGradInput] : buffer_.get();
    const T* x = read_flat(kInput, n, offset, out_.get());
    if (x == out) x = std::copy(x, x + n * r_.classes, out_.get()) - n * r_.classes;
    const T* t = target_planes_.empty() ? x : read_flat(kTarget, n, offset, target_buffer_.get());
    if constexpr (F::uses_shares(Mode)) {
      // without probabilities it is the same for all rows
      const bool each = Mode == F::probability_mode;
      mass_of_rows<T, Mode>(f_, mass_, t, padded_weights(), r_.classes, each ? n : 1);
      if (!each) std::fill(mass_ + 1, mass_ + n, mass_[0]);
      std::fill(dot_, dot_ + n, T(0));  // of no use for a gradient
    }
    coefficients(n, offset);
    grad_rows<T, Mode>(f_, {a_, rest_, high_, low_, padded_weights()}, out, x, t, r_.classes, n);
    for (int64_t i = 0; i < n; i++)
      if (index_[i] >= 0) {
        T& own = out[i * r_.classes + index_[i]];
        own = target_score_slope(f_, own, hit_[i], x[i * r_.classes + index_[i]]);
      }
    if (direct) return;
    if (dense) return store(o.dtype, o.data, offset[kGradInput], int64_t(1), out, n * r_.classes);
    for (int64_t i = 0; i < n; i++)
      store(o.dtype, o.data, place(kGradInput, offset, i, 0), int64_t(1), out + i * r_.classes, r_.classes);
  }
  const T* padded_weights() {
    if (padded_.empty())
      for (int64_t c = 0; c < r_.classes + kAtOnce; c++) padded_.push_back(c < r_.classes ? weight(c) : T(0));
    return padded_.data();
  }
  // Without a softmax the gradient is 0 but at the target.
  void scatter_across(int64_t n, const int64_t* offset) {
    const Operand& o = operand(kGradInput);
    with_floating_storage(o.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      S own[kRows], tile[kRows];
      for (int64_t i = 0; i < n; i++) own[i] = Narrow<S>::from(-hit_[i]);
      const int64_t step = stride(kGradInput);
      if (r_.class_stride[kGradInput] == 1 && step == r_.classes) {
        S* rows = static_cast<S*>(o.data) + offset[kGradInput];
        std::memset(static_cast<void*>(rows), 0, size_t(n * step) * sizeof(S));
        for (int64_t i = 0; i < n; i++)
          if (index_[i] >= 0) rows[i * step + index_[i]] = own[i];
        return;
      }
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
    const bool direct = lies_as<S>(kGradInput);
    S* out = static_cast<S*>(o.data) + at;
    if constexpr (std::is_same_v<S, T>)
      if (!direct) out = row_buffer(out_);
    const bool zero = !F::softmax || (a_[i] == T(0) && rest_[i] == T(0));
    const int32_t y = index_[i];
    T own = hit_[i];  // the target's gradient, from the slope that the loop finds before it is rounded
    const bool rounded = !std::is_same_v<S, T> && !F::has_margin && !zero && y >= 0;
    const T score = F::softmax && y >= 0 ? widen<T>(x[y]) : T(0);  // before the gradient takes the scores' place
    if (rounded) own = target_score_slope(f_, slope_of(i, y, x, t), own, score);
    if (zero) std::memset(out, 0, size_t(r_.classes) * sizeof(S));
    else if (keeps_terms_) grad_of_row_terms(i, offset, out);
    else
      each_piece([&](int64_t begin, int64_t length) {
        each_tile(begin, begin + length, [&](int64_t c, int64_t n) {
          grad_row<T, Mode>(f_, of_row(i), log_sum_exp(i), out + c, x + c, t + c, weights_from(c), r_.classes, n);
        });
      });
    if (!rounded && y >= 0) own = target_score_slope(f_, widen<T>(out[y]), own, score);
    if (y >= 0) out[y] = Narrow<S>::from(own);
    if constexpr (std::is_same_v<S, T>)
      if (!direct) each_piece([&](int64_t c, int64_t n) { store(o.dtype, o.data, at + c * step, step, out + c, n); });
  }
  // Is the gradient in a score its exponential times a factor of the row, but for the target's?
  static constexpr bool kOfTerms = F::softmax && !F::has_margin && !F::has_bias && !F::curved && !F::uses_shares(Mode);
  T* terms_of(int64_t i, const int64_t* offset) const {
    return terms_ ? terms_.get() + i * r_.classes
                  : static_cast<T*>(operand(kGradInput).data) + place(kGradInput, offset, i, 0);
  }
  template <class S>
  void grad_of_row_terms(int64_t i, const int64_t* offset, S* out) {
    const T of_row = a_[i] * exp_negative(-low_[i]);
    each_piece([&](int64_t begin, int64_t length) {
      const T factor = of_row * exp_negative(piece_max(i, begin) - high_[i]);
      each_tile(begin, begin + length,
                [&](int64_t c, int64_t n) { grad_of_terms(factor, out + c, terms_of(i, offset) + c, n); });
    });
  }
  RowCoefficients<T> of_row(int64_t i) const { return {a_[i], hit_[i], rest_[i]}; }
  LogSum<T> log_sum_exp(int64_t i) const { return {high_[i], low_[i]}; }
  template <class S>
  T slope_of(int64_t i, int32_t y, const S* x, const S* t) const {
    T score = widen<T>(x[y]), probability = widen<T>(t[y]), slope;
    grad_row<T, Mode>(f_, of_row(i), log_sum_exp(i), &slope, &score, &probability, weights_from(y), r_.classes, 1);
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
    each_piece([&](int64_t begin, int64_t n) {
      for (int64_t c = begin; c < begin + n; c++) {
        Gradients<T, 2> d = f_.share_grad(nll_of<F>(lse, f_.logit(x[c])), weight(c), t[c], r_.classes);
        if (operand(kGradTarget).data) put(kGradTarget, place(kGradTarget, offset, i, c), g * d.of[0]);
        if (operand(kGradWeight).data) put(kGradWeight, place(kGradWeight, offset, i, c), g * d.of[1]);
      }
    });
  }

  const F f_;
  const Rows& r_;
  const std::vector<T>& weights_;
  const int64_t tile_;
  const bool turned_, shared_;
  const int64_t piece_;
  // Where scores are read too, the reading hides the time of the stores.
  const bool streamed_ =
      !F::softmax && r_.it.numel * r_.classes * size_of(r_.it.operand[kGradInput].dtype) >= kStreamed;
  int64_t width_;
  Buffer buffer_, target_buffer_, out_, terms_;
  bool keeps_terms_ = false;
  std::vector<T> ones_, padded_, piece_max_;
  std::vector<const T*> planes_, target_planes_;
  T max_[kRows], log_sum_[kRows], mass_[kRows], dot_[kRows];
  T score_[kRows], logit_[kRows], weight_[kRows];
  T a_[kRows], hit_[kRows], rest_[kRows], high_[kRows], low_[kRows];
  int32_t index_[kRows];
  int32_t valid_[kRows];
};

}  // namespace lossreg::cpu
