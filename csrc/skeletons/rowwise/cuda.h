#pragma once
// The CUDA row kernels: a thread a row where rows lie next to each other in memory, else a block a row.
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

inline unsigned row_blocks(const Rows& r) {
  if (r.across_rows()) return blocks_for(r.it.numel, 1);
  return unsigned(std::max<int64_t>(1, std::min<int64_t>(r.it.numel, kMaxBlocks)));
}

// Of the classes that were read so far: their log-sum-exp, and their shares relative to the same maximum.
template <class T>
struct Statistics {
  LogSumExp<T> lse;
  Shares<T> shares;

  __device__ static Statistics empty() { return {LogSumExp<T>::empty(), Shares<T>::none()}; }

  // x + bias is a class's logit, u its share.
  template <bool HasShares, bool HasBias>
  __device__ void add(T x, T bias, T u) {
    const T max = lse.max;
    if constexpr (HasBias) lse.add(x, bias);
    else lse.add(x);
    if constexpr (HasShares) {
      shares.move(max, lse.max);
      shares.add(u, x - lse.max);
    }
  }
  __device__ void merge(Statistics o) {
    const T max = lse.max;
    lse.merge(o.lse);
    shares.move(max, lse.max);
    o.shares.move(o.lse.max, lse.max);
    shares.mass += o.shares.mass;
    shares.dot += o.shares.dot;
  }
};

template <class T>
__device__ Statistics<T> block_merge(Statistics<T> s) {
  __shared__ Statistics<T> of_warp[32];
  __shared__ Statistics<T> of_block;
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  auto across_warp = [&] {
    for (int step = 16; step > 0; step /= 2) {
      Statistics<T> o;
      o.lse.max = __shfl_xor_sync(0xffffffffu, s.lse.max, step);
      o.lse.sum = __shfl_xor_sync(0xffffffffu, s.lse.sum, step);
      o.shares.mass = __shfl_xor_sync(0xffffffffu, s.shares.mass, step);
      o.shares.dot = __shfl_xor_sync(0xffffffffu, s.shares.dot, step);
      s.merge(o);
    }
  };
  across_warp();
  if (lane == 0) of_warp[warp] = s;
  __syncthreads();
  if (warp == 0) {
    s = lane < warps ? of_warp[lane] : Statistics<T>::empty();
    across_warp();
    if (lane == 0) of_block = s;
  }
  __syncthreads();
  s = of_block;
  __syncthreads();  // before the next row
  return s;
}

// Reads and writes one row; formula.h computes.
template <class T, class S, int Mode, class F>
struct RowReader {
  const F& f;
  const Rows& r;
  int64_t offset[kRowOperands];
  int64_t target = -1;                 // the target class, if there is one
  bool valid = true, unknown = false;  // unknown: a class index that is neither ignored nor a class

  __device__ RowReader(const F& f, const Rows& r, int64_t row) : f(f), r(r) {
    r.it.offsets(row, offset);
    if constexpr (Mode != F::probability_mode) {
      int64_t t = read<int64_t>(r.it.operand[kTarget], offset[kTarget]);
      bool is_class = t >= 0 && t < r.classes;
      valid = t != f.ignore_index;
      unknown = valid && !is_class;
      target = valid && is_class ? t : -1;
    }
  }
  __device__ T at(RowOperand k, int64_t c) const { return read<T>(r.it.operand[k], offset[k] + c * r.class_stride[k]); }
  __device__ T score(int64_t c) const {
    if constexpr (std::is_void_v<S>) {
      return at(kInput, c);
    } else {
      return widen<T>(static_cast<const S*>(r.it.operand[kInput].data)[offset[kInput] + c * r.class_stride[kInput]]);
    }
  }
  __device__ void put_grad(int64_t c, T value) const {
    const Operand& o = r.it.operand[kGradInput];
    int64_t place = offset[kGradInput] + c * r.class_stride[kGradInput];
    if constexpr (std::is_void_v<S>) {
      write(o, place, value);
    } else {
      static_cast<S*>(o.data)[place] = Narrow<S>::from(value);
    }
  }
  __device__ T bias(int64_t c) const {
    if constexpr (F::has_bias) return static_cast<const T*>(r.weight.data)[c];
    return T(0);
  }
  __device__ T weight(int64_t c) const { return read<T>(r.weight, c * r.weight.stride[0]); }
  __device__ T share(int64_t c) const {
    if constexpr (!F::uses_shares(Mode)) return T(0);
    T t = Mode == F::probability_mode ? at(kTarget, c) : T(1);
    return f.template share<Mode>(weight(c), t, r.classes);
  }
  __device__ Target<T> at_target() const {
    Target<T> y{valid, target >= 0, T(0), T(0), T(1)};
    if (target >= 0) {
      y.score = score(target);
      y.logit = f.target_logit(y.score);
      y.weight = weight(target);
    }
    return y;
  }
  __device__ Statistics<T> statistics(int64_t first, int64_t step) const {
    Statistics<T> s = Statistics<T>::empty();
    if constexpr (F::softmax)
      for (int64_t c = first; c < r.classes; c += step) {
        T x = score(c);
        s.template add<F::uses_shares(Mode), F::has_bias>(c == target ? f.target_logit(x) : f.logit(x), bias(c),
                                                          share(c));
      }
    return s;
  }
  __device__ double& state(int part) const {
    return static_cast<double*>(r.it.operand[kState].data)[offset[kState] + part * r.class_stride[kState]];
  }
  __device__ LogSum<T> log_sum_exp() const {
    if constexpr (F::softmax) return {T(state(0)), T(state(1))};
    return {T(0), T(0)};
  }

  // The row's loss, and its part of the sums.
  __device__ void finish(const Statistics<T>& s, double& loss, double& normaliser) const {
    LogSum<T> lse{s.lse.max, log_of_sum(s.lse.sum, s.lse.max)};
    if constexpr (F::softmax) state(0) = double(lse.high), state(1) = double(lse.low);
    RowLoss<T> of_row = row_loss<Mode>(f, lse, s.shares, at_target(), r.classes);
    if (unknown) of_row.value = T(NAN);
    loss += double(of_row.value);
    normaliser += double(of_row.normaliser);
    if (r.it.operand[kResult].data) write(r.it.operand[kResult], offset[kResult], of_row.value);
  }

  // The gradient in the scores, this thread's classes.
  __device__ void grad(T mass, int64_t first, int64_t step) const {
    LogSum<T> lse = log_sum_exp();
    double scale = r.mean ? 1.0 / *r.normaliser : 1.0;
    T g = unknown ? T(NAN) : T(double(at(kResult, 0)) * scale);
    RowCoefficients<T> k = row_coefficients<Mode>(f, lse, Shares<T>{mass, T(0)}, at_target(), r.classes, g);
    for (int64_t c = first; c < r.classes; c += step) {
      // what a row of coefficients 0 holds is not read
      T x = F::softmax && k.a != T(0) ? score(c) : T(0);
      T u = F::uses_shares(Mode) && k.rest != T(0) ? share(c) : T(0);
      T d = score_slope<Mode>(f, k, lse, x, bias(c), u);
      if (c == target) d = target_score_slope<F>(d, k.hit);
      put_grad(c, unknown ? T(NAN) : d);
    }
  }
};

template <class T, class S, int Mode, class F, class Sums>
__global__ void __launch_bounds__(kThreads) rows_forward_across(F f, const __grid_constant__ Rows r, Sums sums) {
  double loss = 0, normaliser = 0;
  for (int64_t row = global_thread(); row < r.it.numel; row += all_threads()) {
    RowReader<T, S, Mode, F> reader(f, r, row);
    reader.finish(reader.statistics(0, 1), loss, normaliser);
  }
  sums.add({loss, normaliser});
}
template <class T, class S, int Mode, class F, class Sums>
__global__ void __launch_bounds__(kThreads) rows_forward_along(F f, const __grid_constant__ Rows r, Sums sums) {
  double loss = 0, normaliser = 0;
  for (int64_t row = blockIdx.x; row < r.it.numel; row += gridDim.x) {
    RowReader<T, S, Mode, F> reader(f, r, row);
    Statistics<T> s = block_merge(reader.statistics(threadIdx.x, blockDim.x));
    if (threadIdx.x == 0) reader.finish(s, loss, normaliser);
  }
  sums.add({loss, normaliser});
}

template <class T, class S, int Mode, class F>
__global__ void __launch_bounds__(kThreads) rows_grad_across(F f, const __grid_constant__ Rows r) {
  for (int64_t row = global_thread(); row < r.it.numel; row += all_threads()) {
    RowReader<T, S, Mode, F> reader(f, r, row);
    T mass = T(0);
    if constexpr (F::uses_shares(Mode))
      for (int64_t c = 0; c < r.classes; c++) mass += reader.share(c);
    reader.grad(mass, 0, 1);
  }
}
template <class T, class S, int Mode, class F>
__global__ void __launch_bounds__(kThreads) rows_grad_along(F f, const __grid_constant__ Rows r) {
  __shared__ T mass_of_block;
  for (int64_t row = blockIdx.x; row < r.it.numel; row += gridDim.x) {
    RowReader<T, S, Mode, F> reader(f, r, row);
    T mass = T(0);
    if constexpr (F::uses_shares(Mode)) {
      for (int64_t c = threadIdx.x; c < r.classes; c += blockDim.x) mass += reader.share(c);
      mass = block_sum(mass);
      if (threadIdx.x == 0) mass_of_block = mass;
      __syncthreads();
      mass = mass_of_block;
      __syncthreads();  // before the next row
    }
    reader.grad(mass, threadIdx.x, blockDim.x);
  }
}
template <class T, class F>
__global__ void __launch_bounds__(kThreads) rows_share_grad(F f, const __grid_constant__ Rows r) {
  double scale = r.mean ? 1.0 / *r.normaliser : 1.0;
  for (int64_t i = global_thread(); i < r.it.numel * r.classes; i += all_threads()) {
    int64_t c = i % r.classes;
    RowReader<T, void, F::probability_mode, F> reader(f, r, i / r.classes);
    T g = T(double(reader.at(kResult, 0)) * scale);
    T nll = nll_of<F>(reader.log_sum_exp(), reader.at(kInput, c));
    Gradients<T, 2> d = f.share_grad(nll, reader.weight(c), reader.at(kTarget, c), r.classes);
    auto put = [&](RowOperand k, T value) {
      if (r.it.operand[k].data) write(r.it.operand[k], reader.offset[k] + c * r.class_stride[k], value);
    };
    put(kGradTarget, g * d.of[0]);
    put(kGradWeight, g * d.of[1]);
  }
}

struct RowKernels {
  // A thread may write the gradient at the target's score while another still has to read that.
  static constexpr bool gradients_in_place = false;

  template <class T, int Mode, class F>
  static void forward(const F& f, const Rows& rows, const Tensor& out, DType dtype) {
    unsigned blocks = row_blocks(rows);
    auto launch_sums = [&](auto sums) {
      with_storage_of<T>(rows.it.operand[kInput].dtype, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        using Sums = decltype(sums);
        if (rows.across_rows()) launch(rows_forward_across<T, S, Mode, F, Sums>, blocks, kThreads, f, rows, sums);
        else launch(rows_forward_along<T, S, Mode, F, Sums>, blocks, kThreads, f, rows, sums);
      });
    };
    void* result = rows.reduced ? out.mutable_data_ptr() : nullptr;
    sum_blocks<2>(out, blocks, launch_sums, WriteLoss<double>{result, dtype, rows.mean, rows.normaliser});
  }
  template <class T, int Mode, class F>
  static void grad(const F& f, const Rows& rows) {
    if (rows.it.numel == 0) return;
    with_storage_of<T>(rows.it.operand[kInput].dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if (rows.across_rows()) launch(rows_grad_across<T, S, Mode, F>, row_blocks(rows), kThreads, f, rows);
      else launch(rows_grad_along<T, S, Mode, F>, row_blocks(rows), kThreads, f, rows);
    });
  }
  template <class T, class F>
  static void share_grad(const F& f, const Rows& rows) {
    if (rows.it.numel == 0) return;
    int64_t elements = rows.it.numel * rows.classes;
    launch(rows_share_grad<T, F>, blocks_for(elements, 1), kThreads, f, rows);
  }
};

}  // namespace lossreg::cuda
