#pragma once
// The CUDA group kernels: a team of threads a group, from one thread to a block, whose members lie wherever they do;
// or, where groups are neighbours in memory and not the members of one, a thread for a few neighbouring groups.
#include "../../base/log_sum_exp.h"
#include "../../cuda/neighbours.h"
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

// Calls use(S*) with the type that all members and their gradients are stored in, or use(void*) where they differ.
template <class T, class F, class Use>
void with_group_storage(const Groups<F>& g, Use use) {
  using G = Groups<F>;
  DType dtype = g.it.operand[0].dtype;
  bool one = true;
  for (int k = 1; k < F::members; k++) one = one && g.it.operand[k].dtype == dtype;
  for (int k = G::kGrad; k < G::kLabelGrad; k++) one = one && (!g.it.operand[k].data || g.it.operand[k].dtype == dtype);
  with_storage_where<T>(
      [&](auto* storage) { return one && dtype == dtype_of_storage<std::remove_pointer_t<decltype(storage)>>; }, use);
}

// What is side by side in memory, so that a thread takes 16 bytes of it: the members of a group, groups, or neither.
enum class Side { members, groups, none };
// Are all operands with members on boundaries of 16 bytes, and does holds(operand, its step) say yes to each?
template <class F, class Holds>
bool each_with_members(const Groups<F>& g, Holds holds) {
  using G = Groups<F>;
  for (int k = 0; k < G::kLabelGrad; k++) {
    const Operand& o = g.it.operand[k];
    if ((k >= F::members && k < G::kGrad) || !o.data) continue;
    if (reinterpret_cast<uintptr_t>(o.data) % 16 != 0 || !holds(o, g.member_stride[k])) return false;
  }
  return true;
}
// So few groups of so many members that threads have to share each, wherever its members lie.
template <class F>
bool is_narrow(const Groups<F>& g) {
  return g.it.numel < 8192 && g.members > 64;
}
template <class S, class F>
Side side_by_side(const Groups<F>& g) {
  constexpr int N = neighbours_in_16_bytes<S>();
  const int dims = g.it.dims;
  auto whole_from = [&](const Operand& o, int first) {
    for (int d = first; d < dims; d++)
      if (o.stride[d] % N != 0) return false;
    return true;
  };
  auto members = [&](const Operand& o, int64_t member_stride) { return member_stride == 1 && whole_from(o, 0); };
  auto groups = [&](const Operand& o, int64_t member_stride) {
    return o.stride[0] == 1 && member_stride % N == 0 && whole_from(o, 1);
  };
  // what is kept of groups is read and written as they are, several together
  const Operand& state = g.it.operand[Groups<F>::kState];
  auto kept_alike = [&] {
    return !state.data ||
           (reinterpret_cast<uintptr_t>(state.data) % 16 == 0 && groups(state, g.member_stride[Groups<F>::kState]));
  };
  if (g.members > INT32_MAX / 2) return Side::none;  // members are numbered in 32 bits where they are packed
  if (g.members % N == 0 && each_with_members(g, members)) return Side::members;
  if (F::along == Along::classes && dims > 0 && g.it.size[0] % N == 0 && !is_narrow(g) &&
      each_with_members(g, groups) && kept_alike())
    return Side::groups;
  return Side::none;
}

// The threads that share a group: a power of two of one warp's, or the block's.
struct GroupTeam {
  unsigned threads;
  __device__ unsigned rank() const { return threadIdx.x & (threads - 1); }
  // The values of all of them joined. Every one gets it. A thread with several groups is alone.
  template <int Groups, class Join, class T>
  __device__ T join(T value, T neutral, Join join) const {
    if constexpr (Groups > 1) return value;
    if (threads > 32) return block_join(value, neutral, join);
    for (unsigned step = threads / 2; step > 0; step /= 2)
      value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
  }
  // use(group, real) for this team's groups, of which it takes N at once. All threads of a block come equally often;
  // what is not real is the last group once more, because the threads of a warp have to join together.
  template <int N, class Use>
  __device__ void each_group(int64_t groups, Use use) const {
    const int64_t teams = kThreads / threads * N;
    for (int64_t first = blockIdx.x * teams; first < groups; first += gridDim.x * teams) {
      const int64_t group = first + threadIdx.x / threads * N;
      use(group < groups ? group : groups - N, group < groups);
    }
  }
};
// How many numbers a thread takes of an operand with one instruction.
template <class S, Side side>
constexpr int numbers_in_pack = side == Side::none ? 1 : neighbours_in_16_bytes<S>();
// How many packs of each operand a thread has under way at once: what registers have room for. Of eight groups a thread
// holds what is known of each while later sums are taken.
template <class T, class S, Side side, class F>
constexpr int packs_together() {
  if constexpr (std::is_void_v<S> || sizeof(T) == 8) return 1;
  if constexpr (numbers_in_pack<S, side> < 8) return 4;
  return F::members < 3 && (side == Side::members || later_sums<F>() == 0) ? 2 : 1;
}
// As many threads as have one pack each, up to a line of memory beside each other, then as have as many as they take at
// once; a block for what a warp would take many times over, or where there are few groups.
template <int N, class F>
unsigned threads_a_group(const Groups<F>& g, int together) {
  const int64_t packs = (g.members + N - 1) / N;
  // groups closer to each other than their members are read across
  if (packs <= 1 || (g.across(1) && !is_narrow(g))) return 1;
  if (packs > 32 * 4 * together || (packs > 128 && g.it.numel <= 1024)) return kThreads;
  unsigned threads = 1;
  while (threads < 32 && (threads < 8 ? threads < packs : threads * together < packs)) threads *= 2;
  return threads;
}

// In place of a member, where the class index is to be ignored, or it or the label is of none.
constexpr int kIgnoredGroup = -2, kUnknownGroup = -1;

// One group, or some side by side in memory: where it is, and its part of the members, of which the threads of a team
// take packs in turn.
template <class T, class S, Side side, int Mode, class F>
struct GroupReader {
  using G = Groups<F>;
  static constexpr int kGradients = member_gradients<F>;
  static constexpr int N = numbers_in_pack<S, side>;
  static constexpr int kMembers = side == Side::groups ? 1 : N, kGroups = side == Side::groups ? N : 1;
  static constexpr int kPacks = packs_together<T, S, side, F>();
  using Numbers = Neighbours<std::conditional_t<std::is_void_v<S>, T, S>, N>;
  using Batch = Numbers[kPacks][F::members];

  using Index = std::conditional_t<side == Side::none, int64_t, int>;  // of a member

  const F& f;
  const G& g;
  const GroupTeam team;
  const MemberBody<F, Mode> body;
  const Index members, step;  // from pack to pack
  int64_t offset[G::kOperands];
  Index index[kGroups];  // the member of the class index or the label, or kIgnoredGroup, kUnknownGroup
  T label[kGroups];

  __device__ GroupReader(const F& f, const G& g, GroupTeam team, int64_t group)
      : f(f), g(g), team(team), body{f}, members(Index(g.members)), step(Index(team.threads) * kMembers) {
    g.it.offsets(group, offset);
  }
  __device__ int64_t place(int k, int j) const { return offset[k] + (kGroups > 1 ? j * g.it.operand[k].stride[0] : 0); }
  // The numbers of an operand without members, one a group. Its dtype is found out once, and without a call, since
  // loads of members are under way.
  template <class V>
  __device__ void read_numbers(int k, V (&x)[kGroups]) const {
    const Operand& o = g.it.operand[k];
    auto from = [&](auto* tag) {
      LOSSREG_UNROLL
      for (int j = 0; j < kGroups; j++) x[j] = widen<V>(static_cast<decltype(tag)>(o.data)[place(k, j)]);
    };
    if constexpr (std::is_integral_v<V>) with_storage(o.dtype, from);
    else with_floating_storage(o.dtype, from);
  }
  __device__ void read_labels() {
    if constexpr (has_hits<F>) {
      int64_t given[kGroups] = {};
      read_numbers(G::kLabel, given);
      LOSSREG_UNROLL
      for (int j = 0; j < kGroups; j++)
        index[j] = given[j] == f.ignore_index            ? kIgnoredGroup
                   : given[j] >= 0 && given[j] < members ? Index(given[j])
                                                         : kUnknownGroup;
    }
    if constexpr (has_places<F>) {
      LOSSREG_UNROLL
      for (int j = 0; j < kGroups; j++) {
        label[j] = read<T>(g.it.operand[G::kLabel], place(G::kLabel, j));
        index[j] = f.place_of(label[j], T(members));
      }
    }
  }
  __device__ bool valid(int j) const { return !has_hits<F> || index[j] != kIgnoredGroup; }
  __device__ bool known(int j) const { return !has_index<F> || index[j] >= 0; }

  __device__ int64_t member_place(int k, Index c) const {
    return offset[k] + (side == Side::members ? c : c * g.member_stride[k]);
  }
  __device__ Index first() const { return Index(team.rank()) * kMembers; }
  __device__ void load(Index c, Batch& batch) const {
    LOSSREG_UNROLL
    for (int u = 0; u < kPacks; u++, c += step) {
      if (c >= members) break;
      LOSSREG_UNROLL
      for (int k = 0; k < F::members; k++) {
        const Operand& o = g.it.operand[k];
        if constexpr (std::is_void_v<S>) batch[u][k].at[0] = read<T>(o, member_place(k, c));
        else batch[u][k] = load_neighbours<N>(static_cast<const S*>(o.data) + member_place(k, c));
      }
    }
  }
  // use(j, x, place): member c + j of a group, or a member of group j, and how many members behind the index it is.
  // Without: no member here is that of the class index.
  template <bool Without, class Use>
  __device__ void each_number(const Numbers (&pack)[F::members], Index c, Use use) const {
    LOSSREG_UNROLL
    for (int j = 0; j < N; j++) {
      T x[F::members];
      LOSSREG_UNROLL
      for (int k = 0; k < F::members; k++) x[k] = widen<T>(pack[k].at[j]);
      if constexpr (Without) use(j, x, Index(-1));
      else use(j, x, (kGroups > 1 ? c : c + j) - index[kGroups > 1 ? j : 0]);
    }
  }
  template <bool Without, class Use>
  __device__ void each_number_of(const Batch& batch, Index c, Use use) const {
    LOSSREG_UNROLL
    for (int u = 0; u < kPacks; u++, c += step) {
      if (c >= members) break;
      each_number<Without>(batch[u], c, use);
    }
  }
  // use(j, x, place) for all packs of a batch. Where members are packed, few batches hold the class index's: the others
  // are spared the question.
  template <class Use>
  __device__ void each_number(const Batch& batch, Index c, Use use) const {
    if constexpr (!has_index<F>) {
      each_number_of<true>(batch, c, use);
    } else if constexpr (side == Side::members && has_hits<F>) {
      bool here = false;
      LOSSREG_UNROLL
      for (int u = 0; u < kPacks; u++) here = here || (index[0] >= c + u * step && index[0] < c + u * step + N);
      if (here) each_number_of<false>(batch, c, use);
      else each_number_of<true>(batch, c, use);
    } else {
      each_number_of<false>(batch, c, use);
    }
  }
  // use(batch, c) for this thread's batches, from member c on.
  template <class Use>
  __device__ void each_batch(Batch& batch, Use use) const {
    for (Index c = first(); c < members;) {
      use(batch, c);
      c += kPacks * step;
      load(c, batch);
    }
  }

  // What the members add up to. A formula whose sums can be carried over to a greater maximum takes one pass over
  // them; others with maxima take two.
  __device__ void statistics(Group<T> (&s)[kGroups]) {
    constexpr int kMaxima = F::maxima(Mode);
    constexpr bool kCarried = kMaxima > 0 && has<declared::carry, F>;
    Batch batch;
    load(first(), batch);
    read_labels();
    LOSSREG_UNROLL
    for (int j = 0; j < kGroups; j++) {
      s[j] = g.template empty_group<T>();
      // carried over: the lowest number, so that a first member of -inf adds e^-inf and not e^(-inf + inf)
      for (int k = 0; k < kMaxima; k++) s[j].max[k] = kCarried ? std::numeric_limits<T>::lowest() : T(-INFINITY);
    }
    auto raise = [&](Group<T>(&s)[kGroups], const Batch& batch, Index c) {
      each_number(batch, c, [&](int j, const T(&x)[F::members], Index place) {
        T y[kMaxima > 0 ? kMaxima : 1];
        auto& max = s[kGroups > 1 ? j : 0].max;
        if constexpr (kMaxima > 0) body.candidates(x, place, y);
        for (int k = 0; k < kMaxima; k++) max[k] = greater(max[k], y[k]);
      });
    };
    auto join_maxima = [&](Group<T>& s) {
      T max[kMostMaxima];
      for (int k = 0; k < kMaxima; k++) max[k] = team.template join<kGroups>(s.max[k], T(-INFINITY), Larger{});
      if constexpr (kCarried) f.carry(s.max, max, s.sum);
      for (int k = 0; k < kMaxima; k++) s.max[k] = max[k];
    };
    if constexpr (kMaxima > 0 && !kCarried) {
      each_batch(batch, [&](const Batch& batch, Index c) { raise(s, batch, c); });
      LOSSREG_UNROLL
      for (int j = 0; j < kGroups; j++) join_maxima(s[j]);
      load(first(), batch);
    }
    each_batch(batch, [&](const Batch& batch, Index c) {
      if constexpr (kCarried) {
        Group<T> higher[kGroups];
        LOSSREG_UNROLL
        for (int j = 0; j < kGroups; j++)
          for (int k = 0; k < kMaxima; k++) higher[j].max[k] = s[j].max[k];
        raise(higher, batch, c);
        LOSSREG_UNROLL
        for (int j = 0; j < kGroups; j++) {
          f.carry(s[j].max, higher[j].max, s[j].sum);
          for (int k = 0; k < kMaxima; k++) s[j].max[k] = higher[j].max[k];
        }
      }
      add_terms<0, F::sums>(s, batch, c, [&](int of, const T(&x)[F::members], Index place, T(&y)[F::sums]) {
        body.terms(s[of].max, x, place, y);
      });
    });
    LOSSREG_UNROLL
    for (int j = 0; j < kGroups; j++)
      if constexpr (kCarried) join_maxima(s[j]);
    join_sums<0, F::sums>(s);
    if constexpr (later_sums<F>() > 0) {
      T known[kGroups][MemberBody<F, Mode>::kKnown];
      LOSSREG_UNROLL
      for (int j = 0; j < kGroups; j++) {
        const auto c = f.template coefficients_of<Mode>(s[j]);
        for (int k = 0; k < F::coefficients; k++) known[j][k] = c.of[k];
        known[j][F::coefficients] = c.members;
      }
      constexpr int kLater = later_sums<F>();
      load(first(), batch);
      each_batch(batch, [&](const Batch& batch, Index c) {
        add_terms<F::sums, kLater>(s, batch, c, [&](int of, const T(&x)[F::members], Index place, T(&y)[kLater]) {
          body.later_terms(known[of], x, place, y);
        });
      });
      join_sums<F::sums, kLater>(s);
    }
  }
  // Adds what terms(j, x, place, y) says of each member of a batch to the Count sums from First on. Of one group, what
  // a batch adds up to by itself first: a long sum keeps more digits so. Of several, a batch is a few members each.
  template <int First, int Count, class Terms>
  __device__ void add_terms(Group<T> (&s)[kGroups], const Batch& batch, Index c, Terms terms) const {
    T of_batch[Count] = {};
    each_number(batch, c, [&](int j, const T(&x)[F::members], Index place) {
      T y[Count];
      const int of = kGroups > 1 ? j : 0;
      terms(of, x, place, y);
      for (int k = 0; k < Count; k++) (kGroups > 1 ? s[of].sum[First + k] : of_batch[k]) += y[k];
    });
    if constexpr (kGroups == 1)
      for (int k = 0; k < Count; k++) s[0].sum[First + k] += of_batch[k];
  }
  // Every thread of the team gets the sums of all.
  template <int First, int Count>
  __device__ void join_sums(Group<T> (&s)[kGroups]) const {
    LOSSREG_UNROLL
    for (int j = 0; j < kGroups; j++)
      for (int k = First; k < First + Count; k++) s[j].sum[k] = team.template join<kGroups>(s[j].sum[k], T(0), Plus{});
  }

  // One thread's: the groups' values, their part of the sums, what the backward pass is to find.
  __device__ void finish(Group<T> (&s)[kGroups], double& loss, double& count) const {
    T value[kGroups];
    LOSSREG_UNROLL
    for (int j = 0; j < kGroups; j++) {
      if constexpr (has_places<F>) s[j].label = label[j];
      else if constexpr (has_label<F>) s[j].label = read<T>(g.it.operand[G::kLabel], place(G::kLabel, j));
      value[j] = !valid(j) ? T(0) : known(j) ? value_of<Mode, T>(f, s[j]) : T(NAN);
      loss += double(value[j]);
      count += valid(j) ? 1 : 0;
    }
    const Operand &result = g.it.operand[G::kResult], &state = g.it.operand[G::kState];
    if (result.data)
      with_floating_storage(result.dtype, [&](auto* tag) {
        using V = std::remove_pointer_t<decltype(tag)>;
        LOSSREG_UNROLL
        for (int j = 0; j < kGroups; j++)
          static_cast<V*>(result.data)[place(G::kResult, j)] = Narrow<V>::from(value[j]);
      });
    if (!state.data) return;
    T coefficients[F::coefficients][kGroups];
    LOSSREG_UNROLL
    for (int j = 0; j < kGroups; j++) {
      auto c = f.template coefficients_of<Mode>(s[j]);
      for (int k = 0; k < F::coefficients; k++) coefficients[k][j] = c.of[k];
    }
    for (int k = 0; k < F::coefficients; k++) store_neighbours(state_of(k), coefficients[k]);
  }
  // Coefficient k of this thread's groups, which lie side by side.
  __device__ T* state_of(int k) const {
    return static_cast<T*>(g.it.operand[G::kState].data) + offset[G::kState] + k * g.member_stride[G::kState];
  }

  __device__ void store(int k, Index c, const T (&y)[N]) const {
    const Operand& o = g.it.operand[G::kGrad + k];
    if (!o.data) return;
    if constexpr (std::is_void_v<S>) write(o, member_place(G::kGrad + k, c), y[0]);
    else store_neighbours(static_cast<S*>(o.data) + member_place(G::kGrad + k, c), y);
  }
  __device__ void grad(double scale, bool real) {
    Batch batch;
    load(first(), batch);
    read_labels();
    T coefficients[kGroups][F::coefficients], factor[kGroups] = {};
    read_numbers(G::kResult, factor);
    for (int k = 0; k < F::coefficients; k++) {
      const auto of_groups = load_neighbours<kGroups>(state_of(k));
      LOSSREG_UNROLL
      for (int j = 0; j < kGroups; j++) coefficients[j][k] = of_groups.at[j];
    }
    LOSSREG_UNROLL
    for (int j = 0; j < kGroups; j++) {
      factor[j] = valid(j) ? T(double(factor[j]) * scale) : T(0);
      if (valid(j) && !known(j)) factor[j] = T(NAN);
    }
    if (!real) return;
    if constexpr (has_label_gradient<F>) {
      const Operand& o = g.it.operand[G::kLabelGrad];
      if (o.data && team.rank() == 0)
        for (int j = 0; j < kGroups; j++)
          write(o, place(G::kLabelGrad, j), factor[j] * coefficients[j][F::coefficients - 1]);
    }
    each_batch(batch, [&](const Batch& batch, Index c) {
      LOSSREG_UNROLL
      for (int u = 0; u < kPacks; u++, c += step) {
        if (c >= members) break;
        T all[kGradients][N];
        each_number<!has_index<F>>(batch[u], c, [&](int j, const T(&x)[F::members], Index place) {
          T y[kGradients];
          const int of = kGroups > 1 ? j : 0;
          body.grad(coefficients[of], T(members), x, place, y);
          // an ignored group stays 0 whatever it holds
          for (int k = 0; k < kGradients; k++) all[k][j] = factor[of] == T(0) ? T(0) : factor[of] * y[k];
        });
        for (int k = 0; k < kGradients; k++) store(k, c, all[k]);
      }
    });
  }
};

// How many blocks a multiprocessor has room for at least, so that a thread has the registers it needs and no more.
template <class F>
constexpr unsigned group_blocks(Side side) {
  return side == Side::groups ? 2 : side == Side::members ? 5 - F::members : 4;
}
template <class T, class S, Side side, int Mode, class F, class Sums>
__global__ void __launch_bounds__(kThreads, group_blocks<F>(side))
    groups_forward(F f, const __grid_constant__ Groups<F> g, GroupTeam team, Sums sums) {
  using Reader = GroupReader<T, S, side, Mode, F>;
  double loss = 0, count = 0;
  team.each_group<Reader::kGroups>(g.it.numel, [&](int64_t group, bool real) {
    Reader reader(f, g, team, group);
    Group<T> s[Reader::kGroups];
    reader.statistics(s);
    if (!real || team.rank() != 0) return;
    reader.finish(s, loss, count);
  });
  sums.add({loss, count});
}
template <class T, class S, Side side, int Mode, class F>
__global__ void __launch_bounds__(kThreads, group_blocks<F>(side))
    groups_grad(F f, const __grid_constant__ Groups<F> g, GroupTeam team) {
  using Reader = GroupReader<T, S, side, Mode, F>;
  const double scale = g.mean ? 1.0 / g.template count<T>() : 1.0;
  team.each_group<Reader::kGroups>(g.it.numel,
                                   [&](int64_t group, bool real) { Reader(f, g, team, group).grad(scale, real); });
}

struct GroupKernels {
  template <class T, int Mode, class F>
  static void forward(const F& f, const Groups<F>& groups, const Tensor& out, DType dtype) {
    run<T>(groups, [&](auto* tag, auto side, GroupTeam team, unsigned blocks) {
      auto launch_sums = [&](auto sums) {
        using S = std::remove_pointer_t<decltype(tag)>;
        launch(groups_forward<T, S, side, Mode, F, decltype(sums)>, blocks, kThreads, f, groups, team, sums);
      };
      void* result = groups.reduced ? out.mutable_data_ptr() : nullptr;
      sum_blocks<2>(out, blocks, launch_sums, WriteLoss<T>{result, dtype, groups.mean, static_cast<T*>(groups.valid)});
    });
  }
  template <class T, int Mode, class F>
  static void grad(const F& f, const Groups<F>& groups) {
    if (groups.it.numel == 0) return;
    run<T>(groups, [&](auto* tag, auto side, GroupTeam team, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(groups_grad<T, S, side, Mode, F>, blocks, kThreads, f, groups, team);
    });
  }

 private:
  // use(S*, side, team, blocks): how members are stored, what is side by side in memory, how many threads share a
  // group.
  template <class T, class F, class Use>
  static void run(const Groups<F>& g, Use use) {
    with_group_storage<T>(g, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      auto with = [&](auto side) {
        constexpr int N = numbers_in_pack<S, side>;
        const int64_t units = side == Side::groups ? g.it.numel / N : g.it.numel;
        const GroupTeam team{side == Side::groups ? 1 : threads_a_group<N>(g, packs_together<T, S, side, F>())};
        use(tag, side, team, blocks_for(units * team.threads, 1));
      };
      if constexpr (sizeof(T) == 4 && !std::is_void_v<S>) {
        const Side side = side_by_side<S>(g);
        if (side == Side::members) return with(std::integral_constant<Side, Side::members>{});
        if constexpr (F::along == Along::classes) {
          if (side == Side::groups) return with(std::integral_constant<Side, Side::groups>{});
        }
      }
      with(std::integral_constant<Side, Side::none>{});
    });
  }
};

}  // namespace lossreg::cuda
