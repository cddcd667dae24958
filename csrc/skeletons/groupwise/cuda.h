#pragma once
// The CUDA group kernels: a thread a group where groups lie next to each other in memory, else a warp or a block a
// group.
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

constexpr int64_t kFewMembers = 4;      // a warp would stay mostly idle over so few members
constexpr int64_t kWarpMembers = 1024;  // the most members that one warp takes
constexpr int64_t kLaneBlock = 64;      // members that a thread sums in T before they go into a double

// Calls use(std::integral_constant<int, L>) with the number of threads that share a group.
template <class F, class Use>
void with_lanes(const Groups<F>& g, Use use) {
  if (g.across(kFewMembers)) return use(std::integral_constant<int, 1>{});
  if (g.members <= kWarpMembers) return use(std::integral_constant<int, 32>{});
  use(std::integral_constant<int, int(kThreads)>{});
}
template <class F>
unsigned group_blocks(const Groups<F>& g, int lanes) {
  return blocks_for(g.it.numel * lanes, 1);
}

// Calls use(S*) with the type that all members and their gradients are stored in, or use(void*) where they differ.
template <class T, class F, class Use>
void with_group_storage(const Groups<F>& g, Use use) {
  using G = Groups<F>;
  DType dtype = g.it.operand[0].dtype;
  bool one = true;
  for (int k = 1; k < F::members; k++) one = one && g.it.operand[k].dtype == dtype;
  for (int k = G::kGrad; k < G::kOperands; k++) one = one && (!g.it.operand[k].data || g.it.operand[k].dtype == dtype);
  with_storage_where<T>(
      [&](auto* storage) { return one && dtype == dtype_of_storage<std::remove_pointer_t<decltype(storage)>>; }, use);
}

// The values of the threads that share a group, joined. Every one gets it.
template <int Lanes, class Join, class T>
__device__ T lanes_join(T value, T neutral, Join join) {
  if constexpr (Lanes > 32) {
    return block_join(value, neutral, join);
  } else {
    for (int step = Lanes / 2; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
  }
}

// One group: where it is, and this thread's part of its members.
template <class T, class S, int Lanes, int Mode, class F>
struct GroupReader {
  using G = Groups<F>;
  const F& f;
  const G& g;
  MemberBody<F, Mode> body;
  int64_t offset[G::kOperands];
  int64_t index = -1;  // the member of the class index
  bool valid = true, known = true;

  __device__ GroupReader(const F& f, const G& g, int64_t group) : f(f), g(g), body{f} {
    g.it.offsets(group, offset);
    if constexpr (has_hits<F>) {
      int64_t t = read<int64_t>(g.it.operand[G::kLabel], offset[G::kLabel]);
      valid = t != f.ignore_index;
      known = t >= 0 && t < g.members;
      index = valid && known ? t : -1;
    }
  }
  __device__ static int64_t lane() { return threadIdx.x % Lanes; }

  __device__ void load(int64_t c, T (&x)[F::members]) const {
    for (int k = 0; k < F::members; k++) {
      const Operand& o = g.it.operand[k];
      int64_t at = offset[k] + c * g.member_stride[k];
      if constexpr (std::is_void_v<S>) x[k] = read<T>(o, at);
      else x[k] = widen<T>(static_cast<const S*>(o.data)[at]);
    }
  }
  __device__ void store(int k, int64_t c, T value) const {
    const Operand& o = g.it.operand[k];
    int64_t at = offset[k] + c * g.member_stride[k];
    if (!o.data) return;
    if constexpr (std::is_void_v<S>) write(o, at, value);
    else static_cast<S*>(o.data)[at] = Narrow<S>::from(value);
  }

  __device__ Group<T> statistics() const {
    constexpr int K = F::maxima(Mode);
    Group<T> s = g.template empty_group<T>();
    if constexpr (has_label<F>) s.label = read<T>(g.it.operand[G::kLabel], offset[G::kLabel]);
    T x[F::members];
    if constexpr (K > 0) {
      for (int k = 0; k < K; k++) s.max[k] = T(-INFINITY);
      for (int64_t c = lane(); c < g.members; c += Lanes) {
        load(c, x);
        T y[K];
        body.candidates(x, c == index, y);
        for (int k = 0; k < K; k++) s.max[k] = y[k] > s.max[k] ? y[k] : s.max[k];
      }
      for (int k = 0; k < K; k++) s.max[k] = lanes_join<Lanes>(s.max[k], T(-INFINITY), Larger{});
    }
    double total[F::sums] = {};
    for (int64_t first = lane(); first < g.members; first += kLaneBlock * Lanes) {
      T sum[F::sums] = {};
      for (int64_t c = first; c < g.members && c < first + kLaneBlock * Lanes; c += Lanes) {
        load(c, x);
        T y[F::sums];
        body.terms(s.max, x, c == index, y);
        for (int k = 0; k < F::sums; k++) sum[k] += y[k];
      }
      for (int k = 0; k < F::sums; k++) total[k] += double(sum[k]);
    }
    for (int k = 0; k < F::sums; k++) s.sum[k] = T(lanes_join<Lanes>(total[k], 0.0, Plus{}));
    return s;
  }

  // One thread's: the group's value, its part of the sums, what the backward pass is to find.
  __device__ void finish(const Group<T>& s, double& loss, double& count) const {
    T value = T(0);
    if (valid) {
      value = known ? value_of<Mode, T>(f, s) : T(NAN);
      loss += double(value);
      count += 1;
    }
    const Operand &result = g.it.operand[G::kResult], &state = g.it.operand[G::kState];
    if (result.data) write(result, offset[G::kResult], value);
    if (!state.data) return;
    auto c = f.template coefficients_of<Mode>(s);
    for (int k = 0; k < F::coefficients; k++)
      static_cast<T*>(state.data)[offset[G::kState] + k * g.member_stride[G::kState]] = c.of[k];
  }
  __device__ void grad() const {
    const Operand& state = g.it.operand[G::kState];
    T coefficients[F::coefficients];
    for (int k = 0; k < F::coefficients; k++)
      coefficients[k] = static_cast<const T*>(state.data)[offset[G::kState] + k * g.member_stride[G::kState]];
    double scale = g.mean ? 1.0 / g.template count<T>() : 1.0;
    T factor = valid ? T(double(read<T>(g.it.operand[G::kResult], offset[G::kResult])) * scale) : T(0);
    if (valid && !known) factor = T(NAN);
    for (int64_t c = lane(); c < g.members; c += Lanes) {
      T x[F::members], y[F::gradients];
      load(c, x);
      body.grad(coefficients, T(g.members), x, c == index, y);
      // an ignored group stays 0 whatever it holds
      for (int k = 0; k < F::gradients; k++) store(G::kGrad + k, c, factor == T(0) ? T(0) : factor * y[k]);
    }
  }
};

template <class T, class S, int Lanes, int Mode, class F, class Sums>
__global__ void __launch_bounds__(kThreads) groups_forward(F f, const __grid_constant__ Groups<F> g, Sums sums) {
  double loss = 0, count = 0;
  for (int64_t i = global_thread() / Lanes; i < g.it.numel; i += all_threads() / Lanes) {
    GroupReader<T, S, Lanes, Mode, F> reader(f, g, i);
    Group<T> s = reader.statistics();
    if (reader.lane() == 0) reader.finish(s, loss, count);
  }
  sums.add({loss, count});
}
template <class T, class S, int Lanes, int Mode, class F>
__global__ void __launch_bounds__(kThreads) groups_grad(F f, const __grid_constant__ Groups<F> g) {
  for (int64_t i = global_thread() / Lanes; i < g.it.numel; i += all_threads() / Lanes)
    GroupReader<T, S, Lanes, Mode, F>(f, g, i).grad();
}

struct GroupKernels {
  template <class T, int Mode, class F>
  static void forward(const F& f, const Groups<F>& groups, const Tensor& out, DType dtype) {
    with_lanes(groups, [&](auto shared_by) {
      constexpr int lanes = decltype(shared_by)::value;
      unsigned blocks = group_blocks(groups, lanes);
      auto launch_sums = [&](auto sums) {
        with_group_storage<T>(groups, [&](auto* tag) {
          using S = std::remove_pointer_t<decltype(tag)>;
          launch(groups_forward<T, S, lanes, Mode, F, decltype(sums)>, blocks, kThreads, f, groups, sums);
        });
      };
      void* result = groups.reduced ? out.mutable_data_ptr() : nullptr;
      sum_blocks<2>(out, blocks, launch_sums, WriteLoss<T>{result, dtype, groups.mean, static_cast<T*>(groups.valid)});
    });
  }
  template <class T, int Mode, class F>
  static void grad(const F& f, const Groups<F>& groups) {
    if (groups.it.numel == 0) return;
    with_lanes(groups, [&](auto shared_by) {
      constexpr int lanes = decltype(shared_by)::value;
      with_group_storage<T>(groups, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        launch(groups_grad<T, S, lanes, Mode, F>, group_blocks(groups, lanes), kThreads, f, groups);
      });
    });
  }
};

}  // namespace lossreg::cuda
