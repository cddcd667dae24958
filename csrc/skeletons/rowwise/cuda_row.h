#pragma once
// What a CUDA thread knows of a row, and how threads join what each has read of one. cuda_along.h and cuda_across.h
// have the kernels.
#include "../../cuda/reduce.h"
#include "kernel.h"

namespace lossreg::cuda {

// Of the classes that were read so far: their log-sum-exp, and their shares relative to the same maximum.
template <class T>
struct Statistics {
  LogSumExp<T> lse;
  Shares<T> shares;

  __device__ static Statistics empty() { return {LogSumExp<T>::empty(), Shares<T>::none()}; }

  // N classes: x + bias is a class's logit, u its share. A class that is not there has x = -inf and u = 0.
  // Ones: all shares are 1, of classes that are there.
  template <bool HasShares, bool HasBias, bool Ones = false, int N>
  __device__ void add(const T (&x)[N], const T (&bias)[N], const T (&u)[N]) {
    // two of each, so that a step does not wait for the one before
    T top[2] = {lse.max, lse.max}, sum[2] = {};
    LOSSREG_UNROLL
    for (int k = 0; k < N; k++) top[k % 2] = greater(top[k % 2], HasBias ? x[k] + bias[k] : x[k]);
    raise<HasShares>(greater(top[0], top[1]));
    LOSSREG_UNROLL
    for (int k = 0; k < N; k++) {
      const T below = x[k] - lse.max;
      sum[k % 2] += exp_term(HasBias ? below + bias[k] : below);
      if constexpr (HasShares && Ones) shares.mass += u[k], shares.dot += u[k] == T(0) ? T(0) : below;
      else if constexpr (HasShares) shares.add(u[k], below);
    }
    lse.sum += sum[0] + sum[1];
  }
  template <bool HasShares>
  __device__ void merge(Statistics o) {
    const T top = greater(lse.max, o.lse.max);
    raise<HasShares>(top);
    o.raise<HasShares>(top);
    lse.sum += o.lse.sum;
    if constexpr (HasShares) {
      shares.mass += o.shares.mass;
      shares.dot += o.shares.dot;
    }
  }

  // What another block has left.
  __device__ void read(const Statistics* from) {
    lse = {__ldcg(&from->lse.max), __ldcg(&from->lse.sum)};
    shares = {__ldcg(&from->shares.mass), __ldcg(&from->shares.dot)};
  }

 private:
  template <bool HasShares>
  __device__ void raise(T top) {
    lse.sum *= exp_term(lse.max - top);
    if constexpr (HasShares) shares.move(lse.max, top);
    lse.max = top;
  }
};

// Every thread of the warp gets what all have read.
template <bool HasShares, class T>
__device__ Statistics<T> warp_merge(Statistics<T> s) {
  LOSSREG_UNROLL_BY(1)
  for (int step = 16; step > 0; step /= 2) {
    Statistics<T> o = Statistics<T>::empty();
    o.lse.max = __shfl_xor_sync(0xffffffffu, s.lse.max, step);
    o.lse.sum = __shfl_xor_sync(0xffffffffu, s.lse.sum, step);
    if constexpr (HasShares) {
      o.shares.mass = __shfl_xor_sync(0xffffffffu, s.shares.mass, step);
      o.shares.dot = __shfl_xor_sync(0xffffffffu, s.shares.dot, step);
    }
    s.template merge<HasShares>(o);
  }
  return s;
}
// The block's first warp gets what all its warps have read, from what each has merged.
template <bool HasShares, class T>
__device__ Statistics<T> block_merge(Statistics<T> s) {
  __shared__ Statistics<T> of_warp[32];
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) of_warp[warp] = s;
  __syncthreads();
  if (warp == 0) s = warp_merge<HasShares>(lane < blockDim.x / 32 ? of_warp[lane] : Statistics<T>::empty());
  __syncthreads();  // before the array is used again
  return s;
}

// A number of a dtype that T is computed from: of float that is one of three, and no call.
template <class T>
__device__ T number_at(const void* data, DType dtype, int64_t offset) {
  if constexpr (sizeof(T) == 8) {
    return read_at<T>(const_cast<void*>(data), dtype, offset);
  } else {
    if (dtype == DType::float32) return static_cast<const float*>(data)[offset];
    if (dtype == DType::bfloat16) return widen<T>(static_cast<const BFloat16*>(data)[offset]);
    return widen<T>(static_cast<const Float16*>(data)[offset]);
  }
}
template <class T>
__device__ void put_number_at(void* data, DType dtype, int64_t offset, T value) {
  if constexpr (sizeof(T) == 8) {
    write_at(data, dtype, offset, value);
  } else {
    if (dtype == DType::float32) static_cast<float*>(data)[offset] = value;
    else if (dtype == DType::bfloat16) static_cast<BFloat16*>(data)[offset] = Narrow<BFloat16>::from(value);
    else static_cast<Float16*>(data)[offset] = Narrow<Float16>::from(value);
  }
}
// The dtypes are those that check_class_indices lets through.
__device__ inline int64_t class_index(const Operand& o, int64_t offset) {
  if (o.dtype == DType::int64) return static_cast<const int64_t*>(o.data)[offset];
  if (o.dtype == DType::int32) return static_cast<const int32_t*>(o.data)[offset];
  return static_cast<const uint8_t*>(o.data)[offset];
}

// Reads and writes one row; formula.h computes.
template <class T, int Mode, class F>
struct RowReader {
  static constexpr bool has_indices = Mode != F::probability_mode, has_shares = F::uses_shares(Mode);

  const F& f;
  const Rows& r;
  int64_t offset[kRowOperands];
  int64_t index = 0;  // what the target says
  T even;             // what each class's share has of the number of classes

  __device__ RowReader(const F& f, const Rows& r, int64_t row) : f(f), r(r) {
    even = f.template even<T>(r.classes);
    r.it.offsets(row, offset);
    if constexpr (has_indices) index = class_index(r.it.operand[kTarget], offset[kTarget]);
  }

  // The target class; -1 if there is none.
  __device__ int target() const { return is_valid() && is_class() ? int(index) : -1; }
  __device__ bool is_valid() const { return !has_indices || index != f.ignore_index; }
  // A class index that is neither ignored nor a class.
  __device__ bool is_unknown() const { return has_indices && is_valid() && !is_class(); }

  template <class S>
  __device__ S* place(RowOperand k) const {
    return static_cast<S*>(r.it.operand[k].data) + offset[k];
  }
  __device__ T at(RowOperand k, int64_t c) const {
    const Operand& o = r.it.operand[k];
    return number_at<T>(o.data, o.dtype, offset[k] + c * r.class_stride[k]);
  }
  __device__ void put(RowOperand k, int64_t c, T value) const {
    const Operand& o = r.it.operand[k];
    put_number_at(o.data, o.dtype, offset[k] + c * r.class_stride[k], value);
  }
  __device__ double& state(int part) const { return place<double>(kState)[part * r.class_stride[kState]]; }

  __device__ T bias(int64_t c) const {
    if constexpr (F::has_bias) return static_cast<const T*>(r.weight.data)[c];
    return T(0);
  }
  __device__ bool has_weights() const { return !F::has_bias && r.weight.data; }
  // RowCall has brought the weights of a row of float into float, side by side.
  __device__ T weight(int64_t c) const {
    if (!has_weights()) return T(1);
    if constexpr (sizeof(T) == 8) return read<T>(r.weight, c * r.weight.stride[0]);
    else return static_cast<const T*>(r.weight.data)[c];
  }
  // Calls use(std::bool_constant) with has_weights(), so that a loop does not ask at each class.
  template <class Use>
  __device__ auto with_weights(Use use) const {
    if constexpr (has_shares)
      if (has_weights()) return use(std::true_type{});
    return use(std::false_type{});
  }
  __device__ T share(int64_t c) const {
    return has_shares ? share_of(weight(c), has_indices ? T(1) : at(kTarget, c)) : T(0);
  }
  // t: what the target says of the class, if that is a probability.
  __device__ T share_of(T w, T t) const {
    if constexpr (has_shares) return f.template share<Mode>(w, t, even);
    return T(0);
  }
  // Is the sum of the shares of all classes their number?
  __device__ bool shares_are_one() const { return has_shares && has_indices && !has_weights(); }

  // score: the target class's; it is read before and handed over.
  __device__ Target<T> target_of(T score) const {
    const int c = target();
    Target<T> y{is_valid(), c >= 0, T(0), T(0), T(1)};
    if (c >= 0) y = {true, true, score, f.target_logit(score), weight(c)};
    return y;
  }
  __device__ T target_score() const {
    const int c = target();
    return c >= 0 ? at(kInput, c) : T(0);
  }

  // The row's loss, and its part of the sums.
  __device__ void finish(Statistics<T> s, T score, double& loss, double& normaliser) const {
    const Target<T> y = target_of(score);
    if constexpr (F::has_margin && F::softmax) {
      // it was left out of the others
      const T x[1] = {y.logit}, none[1] = {T(0)};
      if (y.is_class) s.template add<false, false>(x, none, none);
    }
    const LogSum<T> lse{s.lse.max, log_of_sum(s.lse.sum, s.lse.max)};
    if constexpr (F::softmax) state(0) = double(lse.high), state(1) = double(lse.low);
    RowLoss<T> of_row = row_loss<Mode>(f, lse, s.shares, y, r.classes);
    if (is_unknown()) of_row.value = T(NAN);
    loss += double(of_row.value);
    normaliser += double(of_row.normaliser);
    if (r.it.operand[kResult].data) put(kResult, 0, of_row.value);
  }

  __device__ LogSum<T> log_sum_exp() const {
    if constexpr (F::softmax) return {T(state(0)), T(state(1))};
    return {T(0), T(0)};
  }
  // The incoming gradient times `scale`; NaN where the target is no class.
  __device__ T grad(double scale) const { return is_unknown() ? T(NAN) : T(double(at(kResult, 0)) * scale); }
  // Does the gradient depend on the target's score, beside the log-sum-exp?
  static constexpr bool needs_score = F::softmax && (F::slopes_of_nll || F::has_margin);
  __device__ RowCoefficients<T> coefficients(LogSum<T> lse, T mass, double scale) const {
    const T score = needs_score ? target_score() : T(0);
    RowCoefficients<T> k =
        row_coefficients<Mode>(f, lse, Shares<T>{mass, T(0)}, target_of(score), r.classes, grad(scale));
    // without a softmax, what the other classes get
    if constexpr (!F::softmax) k.a = is_unknown() ? T(NAN) : T(0);
    return k;
  }
  // Of a class that is not the target; x is read if reads_scores(k), else 0, and so with u.
  __device__ static bool reads_scores(const RowCoefficients<T>& k) {
    const bool curve = F::curved && (k.hit != T(0) || k.rest != T(0));
    return F::softmax && (k.a != T(0) || curve);
  }
  __device__ T slope(const RowCoefficients<T>& k, LogSum<T> lse, T x, T bias, T u) const {
    if constexpr (!F::softmax) return k.a;
    else return score_slope<Mode>(f, k, lse, x, bias, u);
  }

 private:
  __device__ bool is_class() const { return has_indices && index >= 0 && index < r.classes; }
};

// What the incoming gradient of a row is multiplied with.
__device__ inline double grad_scale(const Rows& r) {
  return r.mean ? 1.0 / *r.normaliser : 1.0;
}

// Are two operands of one dtype, and lie to multiples of 16 bytes alike, in every row?
inline bool lie_alike(const Rows& r, RowOperand a, RowOperand b) {
  const Operand &x = r.it.operand[a], &y = r.it.operand[b];
  const int size = size_of(x.dtype);
  bool alike = (reinterpret_cast<uintptr_t>(x.data) - reinterpret_cast<uintptr_t>(y.data)) % 16 == 0;
  for (int d = 0; d < r.it.dims; d++) alike = alike && (x.stride[d] - y.stride[d]) * size % 16 == 0;
  return alike && x.dtype == y.dtype;
}

}  // namespace lossreg::cuda
