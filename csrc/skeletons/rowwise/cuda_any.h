#pragma once
// Rows of any strides and dtypes, element by element: a thread or a warp a row. Rows of few classes that follow each
// other in memory pass through shared memory, so that memory is read and written in its order.
#include "cuda_row.h"

namespace lossreg::cuda {

constexpr unsigned kAnyThreads = 128;
constexpr int kMaxStagedClasses = 64;
// How many classes a thread has under way at once.
template <class T>
constexpr int kClassesAhead = sizeof(T) == 4 ? 8 : 1;

struct AnyTeams {
  int lanes;    // of a warp that take a row together: 1 or all
  bool staged;  // through shared memory; lanes == 1 then

  HD int64_t rows_of_block() const { return int64_t(kAnyThreads) / lanes; }
};

// Neighbouring rows in shared memory, as far from a multiple of 16 bytes as they are outside.
template <class T>
struct RowStage {
  static constexpr int kBytes = sizeof(T) == 4 ? int(kAnyThreads) * kMaxStagedClasses * 4 : 0;
  Pack<float> memory[kBytes / 16 + 1];

  __device__ char* beside(const void* data) {
    return reinterpret_cast<char*>(memory) + reinterpret_cast<uintptr_t>(data) % 16;
  }
  // A multiple of 2 bytes, which lie to 16 bytes alike in both places.
  __device__ static void copy(const char* from, char* to, int64_t bytes) {
    int64_t head = int64_t(-reinterpret_cast<uintptr_t>(from) % 16);
    if (head > bytes) head = bytes;
    const int64_t packs = (bytes - head) / 16, edges = (bytes - packs * 16) / 2, at = int64_t(threadIdx.x) * 2;
    LOSSREG_UNROLL_BY(4)  // that many loads are under way at once
    for (int64_t i = threadIdx.x; i < packs; i += kAnyThreads)
      reinterpret_cast<Pack<float>*>(to + head)[i] = reinterpret_cast<const Pack<float>*>(from + head)[i];
    if (threadIdx.x < edges) {
      const int64_t place = at < head ? at : at + packs * 16;
      *reinterpret_cast<uint16_t*>(to + place) = *reinterpret_cast<const uint16_t*>(from + place);
    }
  }
};

// Scores or gradients of one row, for one of its threads: in the tensor, or in the stage.
template <class T>
struct RowLine {
  void* data;  // class c is element c * step
  DType dtype;
  int64_t step;

  __device__ RowLine(const Rows& r, RowOperand k, const int64_t (&offset)[kRowOperands])
      : data(static_cast<char*>(r.it.operand[k].data) + offset[k] * size_of(r.it.operand[k].dtype)),
        dtype(r.it.operand[k].dtype),
        step(r.class_stride[k]) {}

  __device__ T get(int c) const { return number_at<T>(data, dtype, c * step); }
  __device__ void put(int c, T value) const { put_number_at(data, dtype, c * step, value); }
};

// Calls use(c) for groups of N of the classes of one thread; a class of a group is -1 beyond the last one. The threads
// of a stage begin at different classes where rows are as far apart as to lie in the same banks of shared memory.
template <int N, class Use>
__device__ void each_class_group(const Rows& r, const AnyTeams& teams, Use use) {
  const int classes = int(r.classes), lane = int(threadIdx.x) % teams.lanes, size = size_of(r.it.operand[kInput].dtype);
  const bool turns = teams.staged && classes * size % 8 == 0;
  const int turn = turns ? int(threadIdx.x) * (4 / size) % classes : 0;
  for (int k = lane; k < classes; k += teams.lanes * N) {
    int c[N];
    LOSSREG_UNROLL
    for (int n = 0; n < N; n++) {
      c[n] = k + n * teams.lanes;
      if (c[n] >= classes) c[n] = -1;
      else if (c[n] + turn >= classes) c[n] += turn - classes;
      else c[n] += turn;
    }
    use(c);
  }
}
// The rows of this block, at most rows_of_block(), from `first` on.
template <class Use>
__device__ void each_row_block(const Rows& r, const AnyTeams& teams, Use use) {
  const int64_t rows = teams.rows_of_block();
  for (int64_t first = blockIdx.x * rows; first < r.it.numel; first += gridDim.x * rows)
    use(first, r.it.numel - first < rows ? r.it.numel - first : rows);
}

template <class T, int Mode, class F, class Sums>
__global__ void __launch_bounds__(kAnyThreads)
    rows_forward_any(F f, const __grid_constant__ Rows r, AnyTeams teams, Sums sums) {
  using Row = RowReader<T, Mode, F>;
  constexpr int N = kClassesAhead<T>;
  __shared__ RowStage<T> stage;
  double loss = 0, normaliser = 0;
  const int size = size_of(r.it.operand[kInput].dtype);
  each_row_block(r, teams, [&](int64_t first, int64_t rows) {
    const char* block = static_cast<const char*>(r.it.operand[kInput].data) + first * r.classes * size;
    if (F::softmax && teams.staged) {
      stage.copy(block, stage.beside(block), rows * r.classes * size);
      __syncthreads();
    }
    const int at = int(threadIdx.x) / teams.lanes;
    if (at < rows) {
      const Row row(f, r, first + at);
      const T score = row.target_score();
      Statistics<T> s = Statistics<T>::empty();
      if constexpr (F::softmax) {
        RowLine<T> line(r, kInput, row.offset);
        if (teams.staged) line.data = stage.beside(block) + at * r.classes * size;
        each_class_group<N>(r, teams, [&](const int (&c)[N]) {
          T z[N], bias[N], u[N];
          LOSSREG_UNROLL
          for (int n = 0; n < N; n++) {
            const bool left_out = F::has_margin && c[n] == row.target();
            z[n] = c[n] < 0 || left_out ? -T(INFINITY) : f.logit(line.get(c[n]));
            bias[n] = c[n] < 0 ? T(0) : row.bias(c[n]);
            u[n] = Row::has_shares && c[n] >= 0 ? row.share(c[n]) : T(0);
          }
          s.template add<Row::has_shares, F::has_bias>(z, bias, u);
        });
        if (teams.lanes > 1) s = warp_merge<Row::has_shares>(s);
      }
      if (int(threadIdx.x) % teams.lanes == 0) row.finish(s, score, loss, normaliser);
    }
    if (teams.staged) __syncthreads();  // before the stage is used again
  });
  sums.add({loss, normaliser});
}

template <class T, int Mode, class F>
__global__ void __launch_bounds__(kAnyThreads) rows_grad_any(F f, const __grid_constant__ Rows r, AnyTeams teams) {
  using Row = RowReader<T, Mode, F>;
  constexpr int N = kClassesAhead<T>;
  __shared__ RowStage<T> stage;
  const double scale = grad_scale(r);
  const int size = size_of(r.it.operand[kInput].dtype);
  each_row_block(r, teams, [&](int64_t first, int64_t rows) {
    const char* block = static_cast<const char*>(r.it.operand[kInput].data) + first * r.classes * size;
    if (F::softmax && teams.staged) {
      stage.copy(block, stage.beside(block), rows * r.classes * size);
      __syncthreads();
    }
    const int at = int(threadIdx.x) / teams.lanes;
    if (at < rows) {
      const Row row(f, r, first + at);
      T mass = T(0);
      if constexpr (Row::has_shares) {
        if (row.shares_are_one()) {
          mass = T(r.classes);
        } else {
          for (int c = int(threadIdx.x) % teams.lanes; c < r.classes; c += teams.lanes) mass += row.share(c);
          for (int step = teams.lanes / 2; step > 0; step /= 2) mass += __shfl_xor_sync(0xffffffffu, mass, step);
        }
      }
      const LogSum<T> lse = row.log_sum_exp();
      const RowCoefficients<T> k = row.coefficients(lse, mass, scale);
      const bool reads = Row::reads_scores(k);
      const int target = row.target();
      RowLine<T> scores(r, kInput, row.offset), grad(r, kGradInput, row.offset);
      if (teams.staged) scores.data = grad.data = stage.beside(block) + at * r.classes * size;
      each_class_group<N>(r, teams, [&](const int (&c)[N]) {
        T x[N];
        LOSSREG_UNROLL
        for (int n = 0; n < N; n++) x[n] = reads && c[n] >= 0 ? scores.get(c[n]) : T(0);
        LOSSREG_UNROLL
        for (int n = 0; n < N; n++) {
          if (c[n] < 0) continue;
          const T d = row.slope(k, lse, x[n], row.bias(c[n]), row.share(c[n]));
          grad.put(c[n], c[n] == target ? target_score_slope(f, d, k.hit, x[n]) : d);
        }
      });
    }
    if (teams.staged) {
      __syncthreads();
      char* to = static_cast<char*>(r.it.operand[kGradInput].data) + first * r.classes * size;
      stage.copy(stage.beside(block), to, rows * r.classes * size);
      __syncthreads();  // before the stage is used again
    }
  });
}

// The gradients in class probabilities, and row by row in the class weights.
template <class T, class F>
__global__ void __launch_bounds__(kAnyThreads, 8) rows_share_grad(F f, const __grid_constant__ Rows r, AnyTeams teams) {
  using Row = RowReader<T, F::probability_mode, F>;
  constexpr int N = 2;
  const double scale = grad_scale(r);
  each_row_block(r, teams, [&](int64_t first, int64_t rows) {
    const int at = int(threadIdx.x) / teams.lanes;
    if (at >= rows) return;
    const Row row(f, r, first + at);
    const T g = row.grad(scale);
    const LogSum<T> lse = row.log_sum_exp();
    each_class_group<N>(r, teams, [&](const int (&c)[N]) {
      T x[N], t[N];
      LOSSREG_UNROLL
      for (int n = 0; n < N; n++) {
        x[n] = c[n] < 0 ? T(0) : row.at(kInput, c[n]);
        t[n] = c[n] < 0 ? T(0) : row.at(kTarget, c[n]);
      }
      LOSSREG_UNROLL
      for (int n = 0; n < N; n++) {
        if (c[n] < 0) continue;
        const Gradients<T, 2> d = f.share_grad(nll_of<F>(lse, f.logit(x[n])), row.weight(c[n]), t[n], r.classes);
        if (r.it.operand[kGradTarget].data) row.put(kGradTarget, c[n], g * d.of[0]);
        if (r.it.operand[kGradWeight].data) row.put(kGradWeight, c[n], g * d.of[1]);
      }
    });
  });
}

// ---- the host's part

// Do rows follow each other without gaps, of few classes each?
inline bool is_staged(const Rows& r, RowOperand k) {
  const bool dense = r.class_stride[k] == 1 && r.it.dims == 1 && r.it.operand[k].stride[0] == r.classes;
  return dense && r.classes <= kMaxStagedClasses;
}
// all_classes: are all of a row's scores read?
template <class T>
AnyTeams any_teams(const Rows& r, bool all_classes, bool staged) {
  if (!all_classes) return {1, false};
  if (sizeof(T) == 4 && staged) return {1, true};
  return {r.across_rows() ? 1 : 32, false};
}
inline unsigned any_blocks(const Rows& r, const AnyTeams& teams) {
  const int64_t rows = teams.rows_of_block();
  return unsigned(std::max<int64_t>(1, std::min<int64_t>((r.it.numel + rows - 1) / rows, kMaxBlocks)));
}

}  // namespace lossreg::cuda
