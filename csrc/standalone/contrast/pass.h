#pragma once
// Losses of all pairs of two sets of vectors. The (N, M) products of the vectors exist for one chunk of rows at a time:
// a chunk is made, a kernel goes through its rows and its columns, the slopes take its place or stand beside it, and
// their products with the vectors are the gradients.
#include "../../base/log_sum_exp.h"
#include "../shared/class_rows.h"
#include "../shared/products.h"

namespace lossreg::contrast {

// May the factors be of S, of 16 bits, where float32 is computed with? See Products::factor_dtype().
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
};

// The sum of a rounded product and of what the rounding took, which is no number where the product is infinite.
struct WithRest {
  template <class T>
  HD void operator()(const T (&x)[2], T (&y)[1]) const {
    y[0] = abs(x[0]) < T(INFINITY) ? x[0] + x[1] : x[0];
  }
};

template <class Backend>
class Pass {
 public:
  // a (N, D), b (M, D), of one dtype
  Pass(const char* op, const Tensor& a, const Tensor& b, bool gradients)
      : op_(op), a_(a), dtype_(*known_dtype(a.scalar_type())), b_(as_factor<Backend>(b, dtype_)) {
    DType dtype = Backend::Products::factor_dtype(dtype_), wide = compute_dtype(dtype_);
    // One thread goes through a row from its beginning: there narrower slopes find place where products have been read.
    bool narrower = gradients && wide != dtype, inside = narrower && Backend::kStrip > 1, apart = narrower && !inside;
    chunks_ = RowChunks::of<typename Backend::Products>(
        a.size(0), b.size(0), size_of(wide) + (apart ? size_of(dtype) : 0), b.numel() * size_of(dtype));
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
      Chunk c{i, first, count, a, rows_of(products_, 0, count), rows_of(slopes_, 0, count)};
      find_products(c.products, a);
      use(c);
    }
  }
  // Of the slopes that a kernel has written: slopes b is the chunk's part of the gradient in a, and slopes^T a what it
  // adds to that in b.
  void rows_gradient(const Chunk& c, const Tensor& in_a) const {
    product<Backend>(rows_of(in_a, c.first, c.count), c.slopes, b_);
  }
  void add_columns_gradient(const Chunk& c, const Tensor& in_b) const {
    add_over_rows<Backend>(op_, in_b, c.index == 0, c.slopes, c.a);
  }

 private:
  // products = a b^T, as float32 has it.
  void find_products(const Tensor& products, const Tensor& a) const {
    if constexpr (Backend::Products::is_rounded)
      if (products.scalar_type() != a.scalar_type()) return find_in_two_parts(products, a);
    product<Backend>(products, a, transposed(b_));
  }
  // What a product loses where it is rounded to 16 bits is the same product less that, and 16 bits of it are enough.
  void find_in_two_parts(const Tensor& products, const Tensor& a) const {
    const Tensor by_column = transposed(b_);
    const DType dtype = *known_dtype(a.scalar_type()), wide = *known_dtype(products.scalar_type());
    const int64_t columns = b_.size(0), row_bytes = std::max<int64_t>(1, columns) * 2 * size_of(dtype);
    const int64_t most = std::max<int64_t>(1, Backend::Products::chunk_bytes(0) / 8 / row_bytes);
    for (int64_t at = 0; at < a.size(0); at += most) {
      const int64_t count = std::min(most, a.size(0) - at);
      const Tensor rows = rows_of(a, at, count);
      const Tensor rounded = new_empty(a, {count, columns}, dtype), rest = new_empty(a, {count, columns}, dtype);
      product<Backend>(rounded, rows, by_column);
      Backend::add_product(rest, rounded, -1.0, rows, by_column);
      map_tensors<Backend, WithRest>(op_, wide, {rounded, rest}, rows_of(products, at, count));
    }
  }

  const char* op_;
  Tensor a_;
  DType dtype_;  // of the vectors
  Tensor b_;     // as a factor
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

  ChunkSlopes(const Chunk& c, bool gradients)
      : ChunkProducts<T>(c),
        slopes(gradients ? static_cast<S*>(c.slopes.mutable_data_ptr()) : nullptr),
        slopes_row(c.slopes.strides()[0]) {}
  template <int L>
  HD void put(int64_t i, int64_t j, int n, const T (&x)[L]) const {
    if (!slopes) return;
    S* to = slopes + i * slopes_row + j;
    if constexpr (L == 1 || std::is_same_v<S, T>) {
      for (int k = 0; k < n; k++) to[k] = Narrow<S>::from(x[k]);
    } else {
      // bytes: their place may be that of products
      S y[L];
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
