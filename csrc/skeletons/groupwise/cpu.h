#pragma once
// The CPU's group kernels. Where groups lie next to each other in memory, a tile of groups is taken together and the
// vectors run across groups; else one group at a time, and the vectors run along its members.
#include <atomic>
#include <memory>
#include <optional>

#include "../../cpu/chunks.h"
#include "cpu_loops.h"

namespace lossreg::cpu {

constexpr int64_t kFewMembers = 16;          // a vector along so few members would stay half empty
constexpr int64_t kGroupBlock = 64;          // members that are summed in T before the sum goes into a double
constexpr int64_t kGroupElements = 1 << 13;  // elements of a tile that stay in L1 from the maxima to the sums

// One thread's work on a problem: its buffers, and the tiles of groups.
template <class T, class F, int Mode>
class GroupWorker {
  using G = Groups<F>;
  static constexpr int M = F::members, kGradients = member_gradients<F>;

 public:
  GroupWorker(const F& f, const G& groups)
      : f_(f), g_(groups), tile_(tile_groups(groups)), across_(groups.across(kFewMembers)) {
    width_ = across_ ? tile_ : 1;
    for (int k = 0; k < M; k++) {
      bool direct = operand(k).dtype == dtype_for<T> && (across_ ? stride(k) : g_.member_stride[k]) == 1;
      if (!direct) buffer_[k].reset(new T[size_t(g_.members * width_)]);
    }
    for (int k = 0; k < kGradients; k++) out_[k].reset(new T[size_t(across_ ? width_ : g_.members)]);
    for (int k = 1; k < kGradients; k++) only_first_ = only_first_ && !operand(G::kGrad + k).data;
    std::fill(a_.label, a_.label + kGroupTile, T(1));
    std::fill(a_.valid, a_.valid + kGroupTile, 1);
    std::fill(a_.index, a_.index + kGroupTile, -1);
  }

  // How many groups make a tile. A chunk of work is one tile, so that sums do not depend on the threads.
  static int64_t tile_groups(const G& g) {
    int64_t members = std::max<int64_t>(1, g.members);
    // groups that are taken one at a time: a tile is as much as makes a chunk
    if (!g.across(kFewMembers)) return std::min(kGroupTile, std::max<int64_t>(1, kChunk / members));
    return std::min(kGroupTile, std::max<int64_t>(16, kGroupElements / (members * M) / 16 * 16));
  }

  struct Sums {
    double value = 0;
    int64_t valid = 0;
    int64_t bad_class = kNone;        // a class index that is neither ignored nor a class
    std::optional<double> bad_label;  // a label that points to no member
  };
  static constexpr int64_t kNone = INT64_MIN;

  void forward(int64_t begin, int64_t end, Sums& sums) {
    each_run(begin, end, tile_, [&](int64_t n, const int64_t* offset) {
      T value[kGroupTile];
      find_values(n, offset, value, sums);
      put(G::kResult, offset, 0, value, n);
      if (operand(G::kState).data) {
        find_group_coefficients<T, Mode>(f_, a_, g_.template empty_group<T>(), n);
        for (int k = 0; k < F::coefficients; k++) put(G::kState, offset, k, a_.coefficient[k], n);
      }
    });
  }

  // Of how many groups the mean is.
  void count(int64_t begin, int64_t end, Sums& sums) {
    each_run(begin, end, tile_, [&](int64_t n, const int64_t* offset) {
      read_labels(n, offset, sums);
      for (int64_t i = 0; i < n; i++) sums.valid += a_.valid[i];
    });
  }

  // The value, and the gradient where that of the value is 1, of so few groups at once that the second finds in cache
  // what the first read.
  void forward_and_grad(int64_t begin, int64_t end, Sums& sums) {
    const T factor = T(scale());
    const int64_t most = across_ ? tile_ : std::max<int64_t>(1, tile_ / 4);
    each_run(begin, end, most, [&](int64_t n, const int64_t* offset) {
      T value[kGroupTile];
      find_values(n, offset, value, sums);
      find_group_coefficients<T, Mode>(f_, a_, g_.template empty_group<T>(), n);
      for (int64_t i = 0; i < n; i++) a_.factor[i] = a_.valid[i] ? factor : T(0);
      find_gradients(n, offset);
    });
  }

  void grad(int64_t begin, int64_t end, Sums& sums) {
    const double scale = this->scale();
    each_run(begin, end, tile_, [&](int64_t n, const int64_t* offset) {
      read_labels(n, offset, sums);
      for (int k = 0; k < F::coefficients; k++) get(G::kState, offset, k, a_.coefficient[k], n);
      get(G::kResult, offset, 0, a_.factor, n);
      for (int64_t i = 0; i < n; i++) a_.factor[i] = a_.valid[i] ? T(double(a_.factor[i]) * scale) : T(0);
      // the forward pass refused it; whoever calls the backward pass by itself gets no number either
      if constexpr (has_places<F>)
        for (int64_t i = 0; i < n; i++) a_.factor[i] = a_.index[i] < 0 ? T(NAN) : a_.factor[i];
      find_gradients(n, offset);
    });
  }

 private:
  double scale() const { return g_.mean ? 1.0 / g_.template count<T>() : 1.0; }
  __attribute__((noinline)) void find_values(int64_t n, const int64_t* offset, T* value, Sums& sums) {
    read_labels(n, offset, sums);
    find_statistics(n, offset);
    sums.value += finish_groups<T, Mode>(f_, a_, g_.template empty_group<T>(), value, n);
    for (int64_t i = 0; i < n; i++) sums.valid += a_.valid[i];
  }
  __attribute__((noinline)) void find_gradients(int64_t n, const int64_t* offset) {
    if constexpr (has_label_gradient<F>) {
      T slope[kGroupTile];
      for (int64_t i = 0; i < n; i++) slope[i] = a_.factor[i] * a_.coefficient[F::coefficients - 1][i];
      put(G::kLabelGrad, offset, 0, slope, n);
    }
    if (across_) grad_across(n, offset);
    else if (only_first_) grad_along_members<1>(n, offset);
    else grad_along_members<kGradients>(n, offset);
  }
  // Calls run(n, offset) for [begin, end) in runs of at most so many groups, which are one step apart in memory.
  template <class Run>
  void each_run(int64_t begin, int64_t end, int64_t most, Run run) {
    int64_t inner = g_.it.dims ? g_.it.size[0] : 1;
    for (int64_t at = begin; at < end;) {
      int64_t n = std::min({end - at, most, inner - at % inner});
      int64_t offset[G::kOperands];
      g_.it.offsets(at, offset);
      run(n, offset);
      at += n;
    }
  }
  const Operand& operand(int k) const { return g_.it.operand[k]; }
  int64_t stride(int k) const { return g_.it.dims ? operand(k).stride[0] : 0; }
  // Group i of the run, member c.
  int64_t place(int k, const int64_t* offset, int64_t i, int64_t c) const {
    return offset[k] + i * stride(k) + c * g_.member_stride[k];
  }
  // Member c of the run's groups, out of an operand and into it.
  void get(int k, const int64_t* offset, int64_t c, T* to, int64_t n) const {
    const Operand& o = operand(k);
    const T* at = load(o.dtype, o.data, place(k, offset, 0, c), stride(k), to, n);
    if (at != to) std::copy(at, at + n, to);
  }
  void put(int k, const int64_t* offset, int64_t c, const T* from, int64_t n) const {
    const Operand& o = operand(k);
    if (o.data) store(o.dtype, o.data, place(k, offset, 0, c), stride(k), from, n);
  }

  void read_labels(int64_t n, const int64_t* offset, Sums& sums) {
    if constexpr (has_label<F>) get(G::kLabel, offset, 0, a_.label, n);
    if constexpr (has_places<F>) {
      for (int64_t i = 0; i < n; i++) {
        a_.index[i] = f_.place_of(a_.label[i], T(g_.members));
        if (a_.index[i] < 0) sums.bad_label = double(a_.label[i]);
      }
    }
    if constexpr (has_hits<F>) {
      const Operand& o = operand(G::kLabel);
      int64_t raw[kGroupTile];
      const int64_t* t = load(o.dtype, o.data, offset[G::kLabel], stride(G::kLabel), raw, n);
      for (int64_t i = 0; i < n; i++) {
        bool valid = t[i] != f_.ignore_index, known = t[i] >= 0 && t[i] < g_.members;
        if (valid && !known) sums.bad_class = t[i];
        a_.valid[i] = valid && known;
        a_.index[i] = valid && known ? int32_t(t[i]) : -1;
      }
    }
  }

  // Member c of the run's groups: of every tensor, an array across groups.
  void members_across(const int64_t* offset, int64_t c, int64_t n, const T* (&x)[M]) {
    for (int k = 0; k < M; k++) {
      const Operand& o = operand(k);
      x[k] = load(o.dtype, o.data, place(k, offset, 0, c), stride(k), buffer_[k].get() + c * width_, n);
    }
  }
  // The same once more, of what the buffers hold from the first time.
  void members_again(const int64_t* offset, int64_t c, const T* (&x)[M]) const {
    for (int k = 0; k < M; k++)
      x[k] =
          buffer_[k] ? buffer_[k].get() + c * width_ : static_cast<const T*>(operand(k).data) + place(k, offset, 0, c);
  }
  // Group i of the run: of every tensor, an array along its members.
  template <class S>
  void members_along(const int64_t* offset, int64_t i, const S* (&x)[M]) {
    for (int k = 0; k < M; k++) {
      const Operand& o = operand(k);
      S* buffer = nullptr;
      if constexpr (std::is_same_v<S, T>) buffer = buffer_[k].get();
      x[k] = load(o.dtype, o.data, place(k, offset, i, 0), g_.member_stride[k], buffer, g_.members);
    }
  }
  // Does memory hold the members of the operands [first, last) side by side, as S? A gradient that nobody asked for is
  // no obstacle.
  template <class S>
  bool packed(int first, int last) const {
    for (int k = first; k < last; k++) {
      const Operand& o = operand(k);
      if (o.data && (o.dtype != dtype_of_storage<S> || g_.member_stride[k] != 1)) return false;
    }
    return true;
  }
  // May the loops along members take words of bfloat16 apart? Else these are widened first.
  static constexpr bool in_words() {
    if constexpr (has<declared::in_words, F>) return F::in_words(Mode);
    else return true;
  }
  static constexpr bool kInWords = std::is_same_v<T, float> && in_words();
  void find_statistics(int64_t n, const int64_t* offset) {
    for (auto& max : a_.max) std::fill(max, max + n, T(-INFINITY));
    if (across_) return statistics_across(n, offset);
    if constexpr (kInWords)
      if (packed<BFloat16>(0, M)) return statistics_along<BFloat16>(n, offset);
    statistics_along<T>(n, offset);
  }
  void statistics_across(int64_t n, const int64_t* offset) {
    const T* x[M];
    if constexpr (F::maxima(Mode) > 0) {
      for (int64_t c = 0; c < g_.members; c++) {
        members_across(offset, c, n, x);
        raise_maxima<T, Mode>(f_, a_, x, int32_t(c), n);
      }
    }
    sum_across<false>(n, offset);
    if constexpr (later_sums<F>() > 0) {
      for (int k = F::sums; k < all_sums<F>; k++) std::fill(a_.sum[k], a_.sum[k] + n, T(0));
      find_group_coefficients<T, Mode>(f_, a_, g_.template empty_group<T>(), n);
      sum_across<true>(n, offset);
    }
  }
  // The sums of terms, or those of later terms.
  template <bool Later>
  void sum_across(int64_t n, const int64_t* offset) {
    constexpr int kTerms = number_of_terms<F, Later>;
    const T* x[M];
    T(*sums)[kGroupTile] = a_.sum + (Later ? F::sums : 0);
    double total[kTerms][kGroupTile];
    for (auto& sum : total) std::fill(sum, sum + n, 0.0);
    for (int64_t first = 0; first < g_.members; first += kGroupBlock) {
      for (int k = 0; k < kTerms; k++) std::fill(sums[k], sums[k] + n, T(0));
      for (int64_t c = first; c < std::min(first + kGroupBlock, g_.members); c++) {
        if (Later || F::maxima(Mode) > 0) members_again(offset, c, x);
        else members_across(offset, c, n, x);
        add_terms<Later, T, Mode>(f_, a_, x, g_.members, int32_t(c), n);
      }
      for (int k = 0; k < kTerms; k++)
        for (int64_t i = 0; i < n; i++) total[k][i] += double(sums[k][i]);
    }
    for (int k = 0; k < kTerms; k++) std::copy(total[k], total[k] + n, sums[k]);
  }
  template <class S>
  void statistics_along(int64_t n, const int64_t* offset) {
    for (int64_t i = 0; i < n; i++) {
      const S* x[M];
      members_along(offset, i, x);
      T max[kMostMaxima] = {a_.max[0][i], a_.max[1][i], a_.max[2][i]};
      if constexpr (F::maxima(Mode) > 0) maxima_along<T, Mode>(f_, x, a_.index[i], max, g_.members);
      for (int k = 0; k < F::maxima(Mode); k++) a_.max[k][i] = max[k];
      sum_along<false>(i, x, max);
      if constexpr (later_sums<F>() > 0) {
        for (int k = F::sums; k < all_sums<F>; k++) a_.sum[k][i] = T(0);
        coefficients_at<T, Mode>(f_, a_, g_.template empty_group<T>(), i);
        T known[known_numbers<F, Mode, true>];
        for (int k = 0; k < F::coefficients; k++) known[k] = a_.coefficient[k][i];
        known[F::coefficients] = T(g_.members);
        sum_along<true>(i, x, known);
      }
    }
  }
  // The same for group i of the run, whose members are x.
  template <bool Later, class S, int N>
  void sum_along(int64_t i, const S* const (&x)[M], const T (&known)[N]) {
    double sum[kMostSums] = {};
    for (int64_t c = 0; c < g_.members; c += kTile) {
      const S* part[M];
      for (int k = 0; k < M; k++) part[k] = x[k] + c;
      terms_along<Later, T, Mode>(f_, part, a_.index[i] - c, known, sum, std::min(kTile, g_.members - c));
    }
    for (int k = 0; k < number_of_terms<F, Later>; k++) a_.sum[(Later ? F::sums : 0) + k][i] = T(sum[k]);
  }

  void grad_across(int64_t n, const int64_t* offset) {
    const T* x[M];
    T* out[kGradients];
    for (int64_t c = 0; c < g_.members; c++) {
      members_across(offset, c, n, x);
      for (int j = 0; j < kGradients; j++) {
        int k = G::kGrad + j;
        bool direct = operand(k).data && operand(k).dtype == dtype_for<T> && stride(k) == 1;
        out[j] = direct ? static_cast<T*>(operand(k).data) + place(k, offset, 0, c) : out_[j].get();
      }
      grad_members<T, Mode>(f_, a_, x, out, g_.members, int32_t(c), n);
      for (int j = 0; j < kGradients; j++)
        if (out[j] == out_[j].get()) put(G::kGrad + j, offset, c, out[j], n);
    }
  }
  // The gradients in the first O tensors.
  template <int O>
  void grad_along_members(int64_t n, const int64_t* offset) {
    if (packed<T>(0, M) && packed<T>(G::kGrad, G::kLabelGrad)) return grad_in_memory<T, O>(n, offset);
    if constexpr (kInWords)
      if (packed<BFloat16>(0, M) && packed<BFloat16>(G::kGrad, G::kLabelGrad))
        return grad_in_memory<BFloat16, O>(n, offset);
    for (int64_t i = 0; i < n; i++) {
      const T* x[M];
      Packed<const T> from[M];
      Packed<T> to[O];
      members_along(offset, i, x);
      for (int k = 0; k < M; k++) from[k] = {x[k], 0};
      for (int j = 0; j < O; j++) to[j] = {out_[j].get(), 0};
      cpu::grad_along<T, Mode, O>(f_, a_, i, 1, from, to, g_.members);
      for (int j = 0; j < O; j++) {
        const Operand& o = operand(G::kGrad + j);
        int64_t at = place(G::kGrad + j, offset, i, 0);
        if (o.data) store(o.dtype, o.data, at, g_.member_stride[G::kGrad + j], out_[j].get(), g_.members);
      }
    }
  }
  template <class S, int O>
  void grad_in_memory(int64_t n, const int64_t* offset) {
    Packed<const S> from[M];
    Packed<S> to[O];
    for (int k = 0; k < M; k++) from[k] = {static_cast<const S*>(operand(k).data) + offset[k], stride(k)};
    for (int j = 0; j < O; j++) {
      int k = G::kGrad + j;
      bool wanted = operand(k).data;
      to[j] = {wanted ? static_cast<S*>(operand(k).data) + offset[k] : reinterpret_cast<S*>(out_[j].get()),
               wanted ? stride(k) : 0};
    }
    cpu::grad_along<T, Mode, O>(f_, a_, 0, n, from, to, g_.members);
  }

  const F f_;
  const G& g_;
  const int64_t tile_;
  const bool across_;
  bool only_first_ = true;  // only the first tensor's gradient is asked for
  int64_t width_;
  GroupArrays<T, F> a_;
  std::unique_ptr<T[]> buffer_[M], out_[kGradients];
};

struct GroupKernels {
  template <class T, int Mode, class F>
  static void forward(const F& f, const Groups<F>& groups, const Tensor& out, DType dtype) {
    using Worker = GroupWorker<T, F, Mode>;
    const auto total = sums<Worker>(
        f, groups, [](Worker& worker, int64_t begin, int64_t end, auto& own) { worker.forward(begin, end, own); });
    if (groups.valid) *static_cast<T*>(groups.valid) = T(total.valid);
    if (groups.reduced) write_scalar(out, dtype, groups.mean ? total.value / double(total.valid) : total.value);
  }
  template <class T, int Mode, class F>
  static void forward_and_grad(const F& f, Groups<F> groups, const Tensor& out, DType dtype) {
    using Worker = GroupWorker<T, F, Mode>;
    T valid = T(0);
    groups.valid = &valid;
    // what a mean divides by has to be known before the first gradient
    if (has_hits<F> && groups.mean)
      valid = T(sums<Worker>(f, groups, [](Worker& worker, int64_t begin, int64_t end, auto& own) {
                  worker.count(begin, end, own);
                }).valid);
    const auto total = sums<Worker>(f, groups, [](Worker& worker, int64_t begin, int64_t end, auto& own) {
      worker.forward_and_grad(begin, end, own);
    });
    write_scalar(out, dtype, groups.mean ? total.value / double(total.valid) : total.value);
  }
  template <class T, int Mode, class F>
  static void grad(const F& f, const Groups<F>& groups) {
    using Worker = GroupWorker<T, F, Mode>;
    std::atomic<int64_t> bad_class{Worker::kNone};
    each_tile<Worker, Sweep::backward>(f, groups, [&](Worker& worker, int64_t, int64_t begin, int64_t end) {
      typename Worker::Sums sums;
      worker.grad(begin, end, sums);
      if (sums.bad_class != Worker::kNone) bad_class = sums.bad_class;
    });
    if constexpr (has_hits<F>)
      if (bad_class != Worker::kNone) fail_class(F::name, groups.members, f.ignore_index, bad_class);
  }

 private:
  // What of_tile(worker, begin, end, sums) adds up, tile after tile. Fails for an index that is none.
  template <class Worker, class F, class OfTile>
  static typename Worker::Sums sums(const F& f, const Groups<F>& groups, OfTile of_tile) {
    std::vector<typename Worker::Sums> partial(size_t(chunks(groups.it.numel, Worker::tile_groups(groups))));
    each_tile<Worker, Sweep::forward>(f, groups, [&](Worker& worker, int64_t c, int64_t begin, int64_t end) {
      of_tile(worker, begin, end, partial[size_t(c)]);
    });
    typename Worker::Sums total;
    for (const auto& p : partial) {
      if constexpr (has_hits<F>)
        if (p.bad_class != Worker::kNone) fail_class(F::name, groups.members, f.ignore_index, p.bad_class);
      if (p.bad_label)
        fail(F::name, ArgumentName{F::args, F::members}, " in [0, ", groups.members - 1, "], got ", *p.bad_label);
      total.value += p.value;
      total.valid += p.valid;
    }
    return total;
  }
  // Calls each(worker, c, begin, end) for every tile of groups; each thread has a worker with buffers of its own.
  template <class Worker, Sweep sweep, class F, class Each>
  static void each_tile(const F& f, const Groups<F>& groups, Each each) {
    int64_t tile = Worker::tile_groups(groups);
    auto make_worker = [&] { return Worker(f, groups); };
    each_chunk<sweep>(groups.it.numel, tile, tile * groups.members, make_worker, each);
  }
};

}  // namespace lossreg::cpu
