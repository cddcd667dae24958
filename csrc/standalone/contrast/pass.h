#pragma once
// Losses of all pairs of two sets of vectors. The (N, M) products of the vectors exist for one chunk of rows at a time:
// a chunk is made, a kernel goes through its rows and its columns, the slopes take its place or stand beside it, and
// their products with the vectors are the gradients.
#include "../../base/log_sum_exp.h"
#include "../shared/class_rows.h"
#include "../shared/products.h"

namespace lossreg::contrast {

// May the factors be of S, of 16 bits, where float32 is computed with? A backend that packs them multiplies bfloat16
// alone.
template <class Backend, class S>
constexpr bool is_narrow_factor = Backend::kStrip == 1 ? sizeof(S) == 2 : std::is_same_v<S, BFloat16>;
template <class Backend>
Tensor as_factor(const Tensor& t, DType dtype) {
  return torch::stable::to(t, scalar_type(Backend::Products::factor_dtype(dtype)));
}

// The rows [first, first + count) of the matrix of products, in `wide`, and where their slopes go, in the factors'
// dtype: the same place if that is the same dtype.
struct Chunk {
  int64_t index, first, count;
  Tensor a, products, slopes;  // a: the rows' vectors, as a factor
  const float* scales;         // see Pass
};

// Of a packed factor, products of few rows take no longer than those of many, and stay in L3.
constexpr int64_t kPackedBytes = 8 << 20;

template <class Backend>
class Pass {
 public:
  // a (N, D), b (M, D), of one dtype. scales: null; or, of packed factors where a is b, what each vector is to be
  // multiplied by, in the products and beside the slopes. Is it worth a larger chunk that it be the only one?
  Pass(const char* op, const Tensor& a, const Tensor& b, bool gradients, const float* scales = nullptr,
       bool as_one = false)
      : op_(op), a_(a), dtype_(*known_dtype(a.scalar_type())), scales_(scales) {
    Tensor right = as_factor<Backend>(b, dtype_);
    by_column_.emplace(transposed(right));
    if (gradients) by_row_.emplace(right);
    DType dtype = Backend::Products::factor_dtype(dtype_), wide = compute_dtype(dtype_);
    // One thread goes through a row from its beginning: there narrower slopes find place where products have been read.
    bool narrower = gradients && wide != dtype, inside = narrower && Backend::kStrip > 1, apart = narrower && !inside;
    using Products = typename Backend::Products;
    auto of = [&](int64_t bytes) {
      return RowChunks::of<Products>(a.size(0), b.size(0), size_of(wide) + (apart ? size_of(dtype) : 0), bytes);
    };
    chunks_ = of(Products::chunk_bytes(b.numel() * size_of(dtype)));
    if (Products::packs && dtype == DType::bfloat16 && !(as_one && chunks_.count == 1)) chunks_ = of(kPackedBytes);
    products_ = chunks_.matrix(a, wide);
    slopes_ = apart    ? chunks_.matrix(a, dtype)
              : inside ? narrow(viewed_as(products_, dtype), 1, 0, b.size(0))
                       : products_;
  }
  const RowChunks& chunks() const { return chunks_; }

  template <class Use>
  void each(Use use) const {
    for (int64_t i = 0; i < chunks_.count; i++) {
      int64_t first = chunks_.first(i), count = chunks_.size(i);
      Tensor a = as_factor<Backend>(rows_of(a_, first, count), dtype_);
      Chunk c{i, first, count, a, rows_of(products_, 0, count), rows_of(slopes_, 0, count), scales_};
      by_column_->product(c.products, a, scales_ ? scales_ + first : nullptr, scales_);
      use(c);
    }
  }
  // Of the slopes that a kernel has written: slopes b is the chunk's part of the gradient in a, and slopes^T a what it
  // adds to that in b.
  void rows_gradient(const Chunk& c, const Tensor& in_a) const {
    by_row_->product(rows_of(in_a, c.first, c.count), c.slopes);
  }
  void add_columns_gradient(const Chunk& c, const Tensor& in_b) const {
    add_over_rows<Backend>(op_, in_b, c.index == 0, c.slopes, c.a);
  }

 private:
  const char* op_;
  Tensor a_;
  DType dtype_;  // of the vectors
  const float* scales_;
  std::optional<RightFactor<Backend>> by_column_, by_row_;  // of b; the second for gradients
  RowChunks chunks_;
  Tensor products_, slopes_;
};

// A chunk as kernels have it: rows of `columns` products,
template <class T>
struct ChunkProducts {
  using Compute = T;
  const T* data;
  int64_t row, columns, first;

  explicit ChunkProducts(const Chunk& c)
      : data(static_cast<const T*>(c.products.const_data_ptr())),
        row(c.products.strides()[0]),
        columns(c.products.size(1)),
        first(c.first) {}
  HD const T* at(int64_t i, int64_t j) const { return data + i * row + j; }
};
// and where their slopes go, stored as S.
template <class T, class S>
struct ChunkSlopes : ChunkProducts<T> {
  using Storage = S;
  S* slopes;  // null: none are asked for
  int64_t slopes_row;
  const float* scales;

  ChunkSlopes(const Chunk& c, bool gradients)
      : ChunkProducts<T>(c),
        slopes(gradients ? static_cast<S*>(c.slopes.mutable_data_ptr()) : nullptr),
        slopes_row(c.slopes.strides()[0]),
        scales(c.scales) {}
  template <int L>
  HD void put(int64_t i, int64_t j, int n, const T (&x)[L]) const {
    if (!slopes) return;
    S* to = slopes + i * slopes_row + j;
    if constexpr (L == 1 || std::is_same_v<S, T>) {
      for (int k = 0; k < n; k++) to[k] = Narrow<S>::from(x[k]);
    } else {
      // bytes: their place may be that of products
      S y[L];
      if (scales)
        for (int k = 0; k < n; k++) y[k] = Narrow<S>::from(x[k] * T(scales[j + k]));
      else
        for (int k = 0; k < n; k++) y[k] = Narrow<S>::from(x[k]);
      memcpy(to, y, size_t(n) * sizeof(S));
    }
  }
};
// Call use(products), or use(slopes), with the types of the chunk.
template <class Use>
void with_products(const Chunk& c, Use use) {
  DType dtype = *known_dtype(c.products.scalar_type());
  in_compute_type(dtype, dtype, [&](auto zero) { use(ChunkProducts<std::decay_t<decltype(zero)>>(c)); });
}
template <class Backend, class Use>
void with_slopes(const Chunk& c, bool gradients, Use use) {
  with_products(c, [&](auto products) {
    using T = typename std::decay_t<decltype(products)>::Compute;
    with_floating_storage(*known_dtype(c.slopes.scalar_type()), [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      constexpr bool narrow = is_narrow_factor<Backend, S> && sizeof(T) == 4;
      if constexpr (std::is_same_v<S, T> || narrow) use(ChunkSlopes<T, S>(c, gradients));
    });
  });
}

// The greatest number and the sum of e^(z - max) of L neighbouring lanes, as LogSumExp; merged, those of all of them.
template <class T, int L>
struct Lanes {
  T max[L], sum[L];

  HD Lanes() {
    for (int j = 0; j < L; j++) max[j] = LogSumExp<T>::empty().max, sum[j] = T(0);
  }
  HD LogSumExp<T> merged() const {
    T top = max[0], total = T(0);
    for (int j = 1; j < L; j++) top = greater(top, max[j]);
    for (int j = 0; j < L; j++) total += sum[j] * exp_negative(max[j] - top);
    return {top, total};
  }
};
template <class T, class Team>
HD LogSumExp<T> of_team(LogSumExp<T> own, const Team& team) {
  T top = team.max(own.max);
  return {top, team.sum(own.sum * exp_negative(own.max - top))};
}

// Where log-sum-exps lie in a state: their maxima and the logarithms of their sums.
template <class T>
struct LogSumExps {
  T *max, *log;

  HD void put(int64_t i, LogSumExp<T> of) const {
    max[i] = of.max;
    log[i] = log_of_sum(of.sum, of.max);
  }
  // The log-sum-exp less z, in double: what is large is taken away first.
  HD double above(int64_t i, double z) const { return (double(max[i]) - z) + double(log[i]); }
  // e^z over the sum
  HD T share(int64_t i, T z) const { return exp_term((z - max[i]) - log[i]); }
};

// One number on the device, a * b / (divisor * over). It is 0 where these are: then there is nothing.
struct WriteFactor {
  Operand factor, a, b, over;
  double divisor;
  HD void operator()(int64_t) const {
    const double by = divisor * get<double>(over, 0);
    put(factor, 0, by == 0 ? 0.0 : get<double>(a, 0) * get<double>(b, 0) / by);
  }
};
template <class Backend>
Tensor factor_of(const Tensor& like, DType dtype, Operand a, Operand b, double divisor, Operand over = {}) {
  Tensor factor = new_empty(like, {}, dtype);
  Backend::each(1, 1, WriteFactor{operand_of(factor), a, b, over, divisor});
  return factor;
}

// gradient = part * factor, where the part is a gradient but for a factor of one number.
struct Times {
  template <class T>
  HD void operator()(const T (&x)[2], T (&y)[1]) const {
    y[0] = x[0] * x[1];
  }
};
template <class Backend>
void write_gradient(const char* op, const Tensor& part, const Tensor& factor, const Tensor& gradient) {
  DType compute = compute_dtype(*known_dtype(factor.scalar_type()), *known_dtype(gradient.scalar_type()));
  map_tensors<Backend, Times>(op, compute, {part, factor}, gradient);
}

}  // namespace lossreg::contrast
