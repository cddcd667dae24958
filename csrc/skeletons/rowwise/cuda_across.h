#pragma once
// Rows that lie next to each other in memory, as the pixels of an image do whose classes are planes: a thread takes 16
// bytes of neighbouring rows, and several classes of them at once.
#include "cuda_along.h"

namespace lossreg::cuda {

constexpr unsigned kPlaneThreads = 128;

// The rows of a block, P side by side for each thread. What is done once a row, with labels, weights, logarithms, is
// done by the threads in the order of the rows, so that they read and write memory in its order; `Field` numbers a row
// go from there to the thread that reads the row's classes, or back, through shared memory.
template <class T, int P, int Fields>
struct RowTile {
  static constexpr int kRows = int(kPlaneThreads) * P;
  T field[Fields][kRows];
  int target[kRows];  // the class, or -1

  // body(place in the tile, row) for each row of the block.
  template <class Body>
  __device__ static void each_row(int64_t first, int64_t rows, Body body) {
    LOSSREG_UNROLL_BY(1)
    for (int at = int(threadIdx.x); at < kRows && first + at < rows; at += int(kPlaneThreads)) body(at, first + at);
  }
  // This thread's P numbers of a field.
  __device__ void get(int k, T (&x)[P]) const {
    LOSSREG_UNROLL
    for (int j = 0; j < P; j++) x[j] = field[k][int(threadIdx.x) * P + j];
  }
  __device__ void put(int k, int j, T x) { field[k][int(threadIdx.x) * P + j] = x; }
};

// The scores of P rows, class by class.
template <class T, class S, int Mode, class F>
struct PlaneReader {
  static constexpr int P = Pack<S>::size;
  using Row = RowReader<T, Mode, F>;
  static constexpr int K = packs_ahead(!Row::has_shares && !F::has_bias);
  using Packs = Pack<S>[K];

  // Classes c, c + 1 and so on; what lies beyond the last one is `beyond`.
  __device__ static void read(const Row& row, RowOperand k, int c, Packs& v, S beyond) {
    const auto* at = reinterpret_cast<const Pack<S>*>(row.template place<const S>(k));
    const int64_t step = row.r.class_stride[k] / P;
    const int classes = int(row.r.classes);
    if (c + K <= classes) {
      LOSSREG_UNROLL
      for (int n = 0; n < K; n++) v[n] = at[(c + n) * step];
    } else {
      LOSSREG_UNROLL
      for (int n = 0; n < K; n++) {
        v[n] = Pack<S>::all(beyond);
        if (c + n < classes) v[n] = at[(c + n) * step];
      }
    }
  }
  // The weights and biases of these classes.
  template <bool Weighted>
  __device__ static void entries(const Row& row, int c, T (&weight)[K], T (&bias)[K]) {
    LOSSREG_UNROLL
    for (int n = 0; n < K; n++) {
      const bool there = c + n < row.r.classes;
      weight[n] = Weighted && there ? static_cast<const T*>(row.r.weight.data)[c + n] : T(1);
      bias[n] = F::has_bias && there ? row.bias(c + n) : T(0);
    }
  }
  // The shares of row j; t: what the target says of these classes.
  __device__ static void shares(const Row& row, int c, const T (&weight)[K], const Packs& t, int j, T (&u)[K]) {
    LOSSREG_UNROLL
    for (int n = 0; n < K; n++) {
      const T share = row.share_of(weight[n], Row::has_indices ? T(1) : t[n].template at<T>(j));
      u[n] = c + n < row.r.classes ? share : T(0);
    }
  }
};

template <class T, class S, int Mode, class F, class Sums>
__global__ void __launch_bounds__(kPlaneThreads) rows_forward_across(F f, const __grid_constant__ Rows r, Sums sums) {
  using Row = RowReader<T, Mode, F>;
  using Reader = PlaneReader<T, S, Mode, F>;
  constexpr int P = Reader::P, K = Reader::K;
  constexpr bool has_shares = Row::has_shares;
  enum { kMax, kSum, kScore, kMass, kDot };
  using Tile = RowTile<T, P, has_shares ? 5 : 3>;
  __shared__ Tile tile;
  const S nothing = Narrow<S>::from(-T(INFINITY));
  double loss = 0, normaliser = 0;
  for (int64_t first = int64_t(blockIdx.x) * Tile::kRows; first < r.it.numel;
       first += int64_t(gridDim.x) * Tile::kRows) {
    const int64_t own = first + int64_t(threadIdx.x) * P;
    const bool inside = own < r.it.numel;
    const Row rows(f, r, inside ? own : 0);
    Pack<S> v[K], t[K];
    if (inside) Reader::read(rows, kInput, 0, v, nothing);
    if constexpr (Row::has_indices)
      Tile::each_row(first, r.it.numel, [&](int at, int64_t row) { tile.target[at] = Row(f, r, row).target(); });
    __syncthreads();
    if (inside) {
      Statistics<T> s[P];
      T score[P];
      int target[P];
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) {
        s[j] = Statistics<T>::empty();
        score[j] = T(0);
        target[j] = Row::has_indices ? tile.target[int(threadIdx.x) * P + j] : -1;
      }
      rows.with_weights([&](auto weighted) {
        for (int c = 0;;) {
          if constexpr (!Row::has_indices) Reader::read(rows, kTarget, c, t, S{});
          T weight[K], bias[K];
          Reader::template entries<weighted>(rows, c, weight, bias);
          LOSSREG_UNROLL
          for (int j = 0; j < P; j++) {
            T z[K], u[K];
            LOSSREG_UNROLL
            for (int n = 0; n < K; n++) {
              const T x = v[n].template at<T>(j);
              // what lies beyond the last class has no logit
              z[n] = F::curved && c + n >= r.classes ? -T(INFINITY) : f.logit(x);
              if (c + n == target[j]) {
                score[j] = x;
                // with a margin the target class has another logit, which is added at the end
                if constexpr (F::has_margin) z[n] = -T(INFINITY);
              }
            }
            if constexpr (has_shares) Reader::shares(rows, c, weight, t, j, u);
            s[j].template add<has_shares, F::has_bias, Row::has_indices && !weighted>(z, bias, u);
          }
          c += K;
          if (c >= r.classes) return;
          Reader::read(rows, kInput, c, v, nothing);
        }
      });
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) {
        tile.put(kMax, j, s[j].lse.max);
        tile.put(kSum, j, s[j].lse.sum);
        tile.put(kScore, j, score[j]);
        if constexpr (has_shares) {
          tile.put(kMass, j, s[j].shares.mass);
          tile.put(kDot, j, s[j].shares.dot);
        }
      }
    }
    __syncthreads();
    Tile::each_row(first, r.it.numel, [&](int at, int64_t row) {
      Statistics<T> s{{tile.field[kMax][at], tile.field[kSum][at]}, Shares<T>::none()};
      if constexpr (has_shares) s.shares = {tile.field[kMass][at], tile.field[kDot][at]};
      Row(f, r, row).finish(s, tile.field[kScore][at], loss, normaliser);
    });
    __syncthreads();  // before the tile is used again
  }
  sums.add({loss, normaliser});
}

// The gradient may take the place of the scores: a thread reads what it writes, before it does.
template <class T, class S, int Mode, class F>
__global__ void __launch_bounds__(kPlaneThreads) rows_grad_across(F f, const __grid_constant__ Rows r) {
  using Row = RowReader<T, Mode, F>;
  using Reader = PlaneReader<T, S, Mode, F>;
  constexpr int P = Reader::P, K = Reader::K;
  constexpr bool has_shares = Row::has_shares;
  enum { kA, kHit, kHigh, kLow, kRest };
  using Tile = RowTile<T, P, has_shares ? 5 : 4>;
  __shared__ Tile tile;
  const double scale = grad_scale(r);
  for (int64_t first = int64_t(blockIdx.x) * Tile::kRows; first < r.it.numel;
       first += int64_t(gridDim.x) * Tile::kRows) {
    const int64_t own = first + int64_t(threadIdx.x) * P;
    const bool inside = own < r.it.numel;
    const Row rows(f, r, inside ? own : 0);
    Pack<S> v[K], t[K];
    if (F::softmax && inside) Reader::read(rows, kInput, 0, v, S{});
    Tile::each_row(first, r.it.numel, [&](int at, int64_t i) {
      const Row row(f, r, i);
      T mass = T(0);
      if constexpr (has_shares) {
        if (row.shares_are_one()) mass = T(r.classes);
        else LOSSREG_UNROLL_BY(4)
        for (int64_t c = 0; c < r.classes; c++) mass += row.share(c);
      }
      const LogSum<T> lse = row.log_sum_exp();
      const RowCoefficients<T> k = row.coefficients(lse, mass, scale);
      tile.target[at] = row.target();
      tile.field[kA][at] = k.a, tile.field[kHit][at] = k.hit;
      tile.field[kHigh][at] = lse.high, tile.field[kLow][at] = lse.low;
      if constexpr (has_shares) tile.field[kRest][at] = k.rest;
    });
    __syncthreads();
    if (inside) {
      T a[P], hit[P], high[P], low[P], rest[P] = {};
      int target[P];
      tile.get(kA, a), tile.get(kHit, hit), tile.get(kHigh, high), tile.get(kLow, low);
      if constexpr (has_shares) tile.get(kRest, rest);
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) target[j] = tile.target[int(threadIdx.x) * P + j];
      auto* to = reinterpret_cast<Pack<S>*>(rows.template place<S>(kGradInput));
      const int64_t step = r.class_stride[kGradInput] / P;
      rows.with_weights([&](auto weighted) {
        for (int c = 0;;) {
          if constexpr (!Row::has_indices) Reader::read(rows, kTarget, c, t, S{});
          T weight[K], bias[K];
          Reader::template entries<weighted>(rows, c, weight, bias);
          T d[K][P];
          LOSSREG_UNROLL
          for (int j = 0; j < P; j++) {
            T u[K];
            Reader::shares(rows, c, weight, t, j, u);
            LOSSREG_UNROLL
            for (int n = 0; n < K; n++) {
              const T x = F::softmax ? v[n].template at<T>(j) : T(0);
              d[n][j] = rows.slope({a[j], hit[j], rest[j]}, {high[j], low[j]}, x, bias[n], u[n]);
              if (c + n == target[j]) d[n][j] = target_score_slope(f, d[n][j], hit[j], x);
            }
          }
          LOSSREG_UNROLL
          for (int n = 0; n < K; n++)
            if (c + n < r.classes) to[(c + n) * step] = Pack<S>::of(d[n]);
          c += K;
          if (c >= r.classes) return;
          if constexpr (F::softmax) Reader::read(rows, kInput, c, v, S{});
        }
      });
    }
    __syncthreads();  // before the tile is used again
  }
}

// ---- the host's part

// May an operand be read in packs of neighbouring rows?
template <class S>
bool is_across(const Rows& r, RowOperand k) {
  constexpr int64_t P = Pack<S>::size;
  const Operand& o = r.it.operand[k];
  if (o.dtype != dtype_of_storage<S> || r.it.dims == 0 || o.stride[0] != 1 || r.it.size[0] % P != 0) return false;
  bool whole = reinterpret_cast<uintptr_t>(o.data) % 16 == 0 && r.class_stride[k] % P == 0;
  for (int d = 1; d < r.it.dims; d++) whole = whole && o.stride[d] % P == 0;
  return whole;
}
template <class S>
unsigned tile_blocks(const Rows& r) {
  constexpr int64_t rows = int64_t(kPlaneThreads) * Pack<S>::size;
  return unsigned(std::max<int64_t>(1, std::min<int64_t>((r.it.numel + rows - 1) / rows, kMaxBlocks)));
}

}  // namespace lossreg::cuda
