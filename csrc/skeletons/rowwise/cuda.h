#pragma once
// The CUDA row kernels: a thread a row where rows lie next to each other in memory, else a block a row.
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

inline unsigned row_blocks(const Rows& r) {
  if (r.across_rows()) return blocks_for(r.it.numel, 1);
  return unsigned(std::max<int64_t>(1, std::min<int64_t>(r.it.numel, kMaxBlocks)));
}

// Online log-sum-exp, and the sums of shares relative to the same maximum, so that nothing large cancels.
template <class T>
struct Statistics {
  T max, sum, mass, dot;

  __device__ static Statistics empty() { return {T(-INFINITY), T(0), T(0), T(0)}; }

  // x + bias is a class's logit, u its share.
  template <bool Shares, bool Bias>
  __device__ void add(T x, T bias, T u) {
    T z = Bias ? x + bias : x;
    if (z > max || z != z) {
      rebase(z);
      max = z;
    }
    // bias after max, so that large scores keep their digits
    if constexpr (Bias) sum += z == T(-INFINITY) ? T(0) : exp((x - max) + bias);
    else sum += x == max ? T(1) : exp(x - max);
    if constexpr (Shares) {
      mass += u;
      dot += u == T(0) ? T(0) : u * (x - max);
    }
  }
  __device__ void rebase(T higher) {
    if (sum > T(0)) sum *= exp(max - higher);
    if (mass != T(0)) dot += mass * (max - higher);
  }
  __device__ void merge(Statistics o) {
    if (o.max > max || o.max != o.max) {
      rebase(o.max);
      max = o.max;
    } else {
      o.rebase(max);
    }
    sum += o.sum;
    mass += o.mass;
    dot += o.dot;
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
      o.max = __shfl_xor_sync(0xffffffffu, s.max, step);
      o.sum = __shfl_xor_sync(0xffffffffu, s.sum, step);
      o.mass = __shfl_xor_sync(0xffffffffu, s.mass, step);
      o.dot = __shfl_xor_sync(0xffffffffu, s.dot, step);
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

// One row: where it is, and its target.
template <class T, class S, int Mode, class F>
struct RowReader {
  const F& f;
  const Rows& r;
  int64_t offset[kRowOperands];
  int64_t target = -1;
  bool valid = true, known = true;

  __device__ RowReader(const F& f, const Rows& r, int64_t row) : f(f), r(r) {
    r.it.offsets(row, offset);
    if constexpr (!(F::probabilities && Mode == F::modes - 1)) {
      int64_t t = read<int64_t>(r.it.operand[kTarget], offset[kTarget]);
      valid = t != f.ignore_index;
      known = t >= 0 && t < r.classes;
      target = valid && known ? t : -1;
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
  // Of the target class, where there is one.
  __device__ T logit(T score) const {
    if constexpr (F::has_margin) return f.target_logit(score);
    return score;
  }
  __device__ T bias(int64_t c) const {
    if constexpr (F::has_bias) return static_cast<const T*>(r.weight.data)[c];
    return T(0);
  }
  __device__ T weight(int64_t c) const { return read<T>(r.weight, c * r.weight.stride[0]); }
  __device__ T share(int64_t c) const {
    if constexpr (!F::uses_shares(Mode)) return T(0);
    T t = F::probabilities && Mode == F::modes - 1 ? at(kTarget, c) : T(1);
    return f.template share<Mode>(weight(c), t, r.classes);
  }
  __device__ Statistics<T> statistics(int64_t first, int64_t step) const {
    Statistics<T> s = Statistics<T>::empty();
    if constexpr (F::softmax)
      for (int64_t c = first; c < r.classes; c += step) {
        T x = score(c);
        s.template add<F::uses_shares(Mode), F::has_bias>(c == target ? logit(x) : f.logit(x), bias(c), share(c));
      }
    return s;
  }
  // Of the log-sum-exp: 0 the greatest score, 1 what is added to it.
  __device__ double& state(int part) const {
    return static_cast<double*>(r.it.operand[kState].data)[offset[kState] + part * r.class_stride[kState]];
  }

  // The row's loss and its part of the mean's denominator.
  __device__ void finish(const Statistics<T>& s, double& loss, double& normaliser) const {
    T log_sum = log(s.sum), value = T(0);
    if constexpr (F::softmax) state(0) = double(s.max), state(1) = double(log_sum);
    if (valid) {
      Row<T> row{T(0), s.mass * log_sum - s.dot, s.mass, T(1), r.classes};
      if (target >= 0) {
        T x = logit(score(target));
        row.nll = F::softmax ? log_sum - (x - s.max) : -x;
        row.weight = weight(target);
      }
      value = known ? f.template value<Mode>(row) : T(NAN);
      loss += double(value);
      normaliser += double(f.template normaliser<Mode>(row));
    }
    if (r.it.operand[kResult].data) write(r.it.operand[kResult], offset[kResult], value);
  }

  // The gradient in the scores, this thread's classes.
  __device__ void grad(T mass, int64_t first, int64_t step) const {
    T high = T(0), low = T(0);
    if constexpr (F::softmax) {
      high = T(state(0));
      low = T(state(1));
    }
    T a = T(0), hit = T(0), rest = T(0);
    if (valid) {
      Row<T> row{T(0), T(0), mass, T(1), r.classes};
      if (target >= 0) {
        T x = logit(score(target));
        row.nll = F::softmax ? low + (high - x) : -x;
        row.weight = weight(target);
      }
      Slopes<T> s = f.template slopes<Mode>(row);
      double scale = r.mean ? 1.0 / *r.normaliser : 1.0;
      T g = known ? T(double(at(kResult, 0)) * scale) : T(NAN);
      a = g * (s.nll + s.spread * mass);
      hit = g * s.nll;
      rest = g * s.spread;
      if constexpr (F::has_margin) {
        if (target >= 0) hit = -g * s.nll * f.target_slope(score(target)) * one_minus_exp(row.nll);
        a *= T(f.scale);
      }
    }
    for (int64_t c = first; c < r.classes; c += step) {
      T d = T(0);
      if (F::softmax && a != T(0)) {
        T e = (f.logit(score(c)) - high) - low;
        if constexpr (F::has_bias) e += bias(c);
        d = a * exp(e);
      }
      if (F::uses_shares(Mode) && rest != T(0)) d -= rest * share(c);
      // with a margin, hit is the target's whole gradient
      if (c == target) d = F::has_margin ? hit : d - hit;
      if (!known && valid) d = T(NAN);
      put_grad(c, d);
    }
  }
};

template <class T, class S, int Mode, class F>
__global__ void __launch_bounds__(kThreads) rows_forward_across(F f, const __grid_constant__ Rows r, double* partial) {
  double loss = 0, normaliser = 0;
  for (int64_t row = global_thread(); row < r.it.numel; row += all_threads()) {
    RowReader<T, S, Mode, F> reader(f, r, row);
    reader.finish(reader.statistics(0, 1), loss, normaliser);
  }
  leave_sums({loss, normaliser}, partial);
}
template <class T, class S, int Mode, class F>
__global__ void __launch_bounds__(kThreads) rows_forward_along(F f, const __grid_constant__ Rows r, double* partial) {
  double loss = 0, normaliser = 0;
  for (int64_t row = blockIdx.x; row < r.it.numel; row += gridDim.x) {
    RowReader<T, S, Mode, F> reader(f, r, row);
    Statistics<T> s = block_merge(reader.statistics(threadIdx.x, blockDim.x));
    if (threadIdx.x == 0) reader.finish(s, loss, normaliser);
  }
  leave_sums({loss, normaliser}, partial);
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
    RowReader<T, void, F::modes - 1, F> reader(f, r, i / r.classes);
    T g = T(double(reader.at(kResult, 0)) * scale);
    T nll = T(reader.state(1) + (reader.state(0) - double(reader.at(kInput, c))));
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
    auto launch_sums = [&](double* partial) {
      with_storage_of<T>(rows.it.operand[kInput].dtype, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        auto kernel = rows.across_rows() ? rows_forward_across<T, S, Mode, F> : rows_forward_along<T, S, Mode, F>;
        launch(kernel, blocks, kThreads, f, rows, partial);
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
