#pragma once
// Rows whose classes lie side by side in memory: a team of threads, a warp or a block, reads a row, or a piece of it,
// in packs of 16 bytes.
#include "cuda_row.h"

namespace lossreg::cuda {

// How many packs a thread has under way at once; fewer where each class has a number of its own beside its score, for
// want of registers.
constexpr int packs_ahead(bool alone) {
  return alone ? 4 : 2;
}

// Who reads what. Where rows are few, several blocks share one, a piece each.
struct RowTeams {
  bool of_block;  // a team is a block, else a warp
  int pieces;     // of a row
  int length;     // how many classes a piece has; the last one may have fewer

  HD unsigned warps() const { return of_block ? kThreads / 32 : 1; }
  __device__ unsigned rank() const { return of_block ? threadIdx.x : threadIdx.x % 32; }
  __device__ int64_t first() const { return of_block ? blockIdx.x : global_thread() / 32; }
  __device__ int64_t count() const { return of_block ? gridDim.x : all_threads() / 32; }
};

// n classes of a row: packs that lie on multiples of 16 bytes, and what is left over at both ends, the edges.
template <class S, int Ahead>
struct Stretch {
  static constexpr int kSize = Pack<S>::size;
  S* data;
  int head, packs, edges;

  __device__ Stretch(S* data, int n) : data(data) {
    head = int(-reinterpret_cast<uintptr_t>(data) / sizeof(S) % kSize);
    if (head > n) head = n;
    packs = (n - head) / kSize;
    edges = n - packs * kSize;
  }
  // Where an edge is, and the first class of a pack.
  __device__ int edge(int i) const { return i < head ? i : i + packs * kSize; }
  __device__ int begin(int pack) const { return head + pack * kSize; }
  __device__ Pack<S>& pack(int i) const { return reinterpret_cast<Pack<S>*>(data + head)[i]; }

  // A thread takes the packs i, i + 32, i + 64 and so on as one group: each warp has a stretch of its own, and the
  // packs of a group are a constant apart. Groups begin at `first`, `step` apart, up to the last one that is_there().
  __device__ static int first(const RowTeams& teams) {
    const int rank = int(teams.rank());
    return rank / 32 * 32 * Ahead + rank % 32;
  }
  __device__ static int step(const RowTeams& teams) { return int(teams.warps()) * 32 * Ahead; }
  // The same for all threads of a warp.
  __device__ bool is_there(int i) const { return i - int(threadIdx.x % 32) < packs; }
  // The rank of the thread that takes a class.
  __device__ unsigned rank_of(int c, const RowTeams& teams) const {
    const int i = (c - head) / kSize;
    if (c < head) return unsigned(c);
    if (i >= packs) return unsigned(c - packs * kSize);
    return unsigned(i) / (32 * Ahead) % teams.warps() * 32 + unsigned(i) % 32;
  }
  // Reads a group of packs; what lies beyond the last one is `beyond`.
  __device__ void read(int i, Pack<S> (&v)[Ahead], S beyond) const {
    if (is_there(i + 32 * Ahead - 1)) {
      LOSSREG_UNROLL
      for (int u = 0; u < Ahead; u++) v[u] = pack(i + 32 * u);
    } else {
      LOSSREG_UNROLL
      for (int u = 0; u < Ahead; u++) {
        v[u] = Pack<S>::all(beyond);
        if (i + 32 * u < packs) v[u] = pack(i + 32 * u);
      }
    }
  }
};

// Of a piece of a row, what one thread has to do with it. Weighted: the classes have weights that their shares hold.
template <class T, class S, int Mode, class F, bool Weighted>
struct PieceReader {
  using Row = RowReader<T, Mode, F>;
  static constexpr int kAhead = packs_ahead(Row::has_indices && !Weighted && !F::has_bias);
  static constexpr int kSize = Pack<S>::size, kClasses = kSize * kAhead;

  const Row& row;
  const RowTeams& teams;
  int first, target;  // the piece's first class, and the target class counted from there
  Stretch<S, kAhead> x;

  __device__ PieceReader(const Row& row, const RowTeams& teams, int piece)
      : row(row),
        teams(teams),
        first(piece * teams.length),
        target(row.target() - first),
        x(row.template place<S>(kInput) + first, at_most(row.r.classes - first, teams.length)) {}

  __device__ bool has_edge() const { return int(teams.rank()) < x.edges; }
  __device__ int edge() const { return x.edge(int(teams.rank())); }

  __device__ T share(int c) const { return row.share(first + c); }
  // Shares of a group's classes, 0 beyond the last one. Probabilities lie as the scores do.
  __device__ void shares(int i, T (&u)[kClasses]) const {
    const T* weights = static_cast<const T*>(row.r.weight.data) + first;
    const S* t = row.template place<const S>(kTarget) + first;
    LOSSREG_UNROLL
    for (int p = 0; p < kAhead; p++) {
      const bool inside = i + 32 * p < x.packs;
      const int c = x.begin(i + 32 * p);
      Pack<S> of_target;
      if (!Row::has_indices && inside) of_target = *reinterpret_cast<const Pack<S>*>(t + c);
      LOSSREG_UNROLL
      for (int j = 0; j < kSize; j++) {
        const T w = Weighted && inside ? weights[c + j] : T(1);
        const T share = row.share_of(w, Row::has_indices ? T(1) : of_target.template at<T>(j));
        u[p * kSize + j] = inside ? share : T(0);
      }
    }
  }
  __device__ void biases(int i, T (&bias)[kClasses]) const {
    LOSSREG_UNROLL
    for (int k = 0; k < kClasses; k++) {
      const int p = i + k / kSize * 32;
      bias[k] = F::has_bias && p < x.packs ? row.bias(first + x.begin(p) + k % kSize) : T(0);
    }
  }

  // score: of the target class; it is asked for while the first scores are under way.
  __device__ Statistics<T> statistics(T& score) const {
    constexpr bool has_shares = Row::has_shares, has_bias = F::has_bias;
    const S nothing = Narrow<S>::from(-T(INFINITY));
    Statistics<T> s = Statistics<T>::empty();
    int i = x.first(teams);
    Pack<S> v[kAhead];
    x.read(i, v, nothing);
    score = row.target_score();
    if (has_edge()) {
      const int c = edge();
      T z[1] = {row.f.logit(widen<T>(x.data[c]))}, bias[1] = {row.bias(first + c)}, u[1] = {T(0)};
      if constexpr (has_shares) u[0] = share(c);
      if (!F::has_margin || c != target) s.template add<has_shares, has_bias>(z, bias, u);
    }
    for (;;) {
      // with a margin the target class has another logit, which is added at the end
      if constexpr (F::has_margin) hide_target(i, v);
      T z[kClasses], bias[kClasses], u[kClasses];
      if constexpr (has_shares) shares(i, u);
      biases(i, bias);
      LOSSREG_UNROLL
      for (int k = 0; k < kClasses; k++) {
        // what lies beyond the last class has no logit
        const bool there = !F::curved || i + k / kSize * 32 < x.packs;
        z[k] = there ? row.f.logit(v[k / kSize].template at<T>(k % kSize)) : -T(INFINITY);
      }
      s.template add<has_shares, has_bias, Row::has_indices && !Weighted>(z, bias, u);
      i += x.step(teams);
      if (!x.is_there(i)) return s;
      x.read(i, v, nothing);
    }
  }

  // Writes the gradients. They may take the place of the scores: a thread reads what it writes, before it does.
  __device__ void write_slopes(LogSum<T> lse, const RowCoefficients<T>& k) const {
    const bool reads = Row::reads_scores(k);
    S* const grad = row.template place<S>(kGradInput) + first;
    auto score_at = [&](int c) { return reads ? widen<T>(x.data[c]) : T(0); };
    auto slope_at = [&](int c) { return row.slope(k, lse, score_at(c), row.bias(first + c), share(c)); };
    // The target class's gradient is made before its score is lost, and written last.
    const bool own = target >= 0 && target < x.edges + x.packs * kSize && x.rank_of(target, teams) == teams.rank();
    const T of_target = own ? target_score_slope(row.f, slope_at(target), k.hit, score_at(target)) : T(0);
    const T of_edge = has_edge() ? slope_at(edge()) : T(0);
    for (int i = x.first(teams); x.is_there(i); i += x.step(teams)) {
      Pack<S> v[kAhead];
      if (reads) {
        x.read(i, v, S{});
      } else {
        LOSSREG_UNROLL
        for (Pack<S>& p : v) p = Pack<S>::all(S{});
      }
      T bias[kClasses], u[kClasses];
      biases(i, bias);
      if constexpr (Weighted || !Row::has_indices) {
        shares(i, u);
      } else {
        LOSSREG_UNROLL
        for (T& of_class : u) of_class = T(1);
      }
      LOSSREG_UNROLL
      for (int p = 0; p < kAhead; p++) {
        T d[kSize];
        LOSSREG_UNROLL
        for (int j = 0; j < kSize; j++)
          d[j] = row.slope(k, lse, v[p].template at<T>(j), bias[p * kSize + j], u[p * kSize + j]);
        if (i + 32 * p < x.packs) reinterpret_cast<Pack<S>*>(grad + x.head)[i + 32 * p] = Pack<S>::of(d);
      }
    }
    if (has_edge()) grad[edge()] = Narrow<S>::from(of_edge);
    if (own) grad[target] = Narrow<S>::from(of_target);
  }

 private:
  // Writes -inf in the place of the target class's score, where it is in this group.
  __device__ void hide_target(int i, Pack<S> (&v)[kAhead]) const {
    const int c = target - x.head, ahead = c < 0 ? -1 : c / kSize - i;
    if (ahead < 0 || ahead >= 32 * kAhead || ahead % 32 != 0) return;
    constexpr int kOfWord = 4 / int(sizeof(S));
    const int at = ahead / 32 * 4 + c % kSize / kOfWord, shift = c % kOfWord * 8 * int(sizeof(S));
    const uint32_t mask = (uint32_t(-1) >> (32 - 8 * sizeof(S))) << shift;
    const uint32_t hidden = Pack<S>::all(Narrow<S>::from(-INFINITY)).word[0] & mask;
    LOSSREG_UNROLL
    for (int w = 0; w < 4 * kAhead; w++)
      if (w == at) v[w / 4].word[w % 4] = (v[w / 4].word[w % 4] & ~mask) | hidden;
  }
  __device__ static int at_most(int64_t n, int most) { return n < most ? int(n) : most; }
};

// The sum of a row's shares, by all threads of its team.
template <class T, int Mode, class F>
__device__ T team_mass(const RowReader<T, Mode, F>& row, const RowTeams& teams) {
  T mass = T(0);
  LOSSREG_UNROLL_BY(4)
  for (int64_t c = teams.rank(); c < row.r.classes; c += 32 * teams.warps()) mass += row.share(c);
  if (teams.of_block) return block_sum(mass);
  for (int step = 16; step > 0; step /= 2) mass += __shfl_xor_sync(0xffffffffu, mass, step);
  return mass;
}

template <class T, class S, int Mode, class F, class Sums>
__global__ void __launch_bounds__(kThreads)
    rows_forward_along(F f, const __grid_constant__ Rows r, RowTeams teams, Statistics<T>* of_pieces, Sums sums) {
  using Row = RowReader<T, Mode, F>;
  double loss = 0, normaliser = 0;
  // Where a row has several pieces, the block that comes last joins them, in the order of the classes, a thread a row.
  for (bool joining = false;; joining = true) {
    const int64_t n = r.it.numel * (joining ? 1 : teams.pieces), step = joining ? blockDim.x : teams.count();
    for (int64_t i = joining ? threadIdx.x : teams.first(); i < n; i += step) {
      const int64_t at = teams.pieces == 1 || joining ? i : int(i) / teams.pieces;
      const Row row(f, r, at);
      T score = T(0);
      Statistics<T> s = Statistics<T>::empty();
      if (joining) {
        score = row.target_score();
        for (int p = 0; p < teams.pieces; p += 4) {
          // four loads are under way at once
          Statistics<T> next[4];
          LOSSREG_UNROLL
          for (int k = 0; k < 4; k++) {
            next[k] = Statistics<T>::empty();
            if (p + k < teams.pieces) next[k].read(of_pieces + i * teams.pieces + p + k);
          }
          LOSSREG_UNROLL
          for (int k = 0; k < 4; k++) s.template merge<Row::has_shares>(next[k]);
        }
      } else {
        s = row.with_weights([&](auto weighted) {
          return PieceReader<T, S, Mode, F, weighted>(row, teams, int(i - at * teams.pieces)).statistics(score);
        });
        s = warp_merge<Row::has_shares>(s);
        if (teams.of_block) s = block_merge<Row::has_shares>(s);
        if (teams.rank() != 0) continue;
        if (teams.pieces > 1) of_pieces[i] = s;
      }
      if (joining || teams.pieces == 1) row.finish(s, score, loss, normaliser);
    }
    if (joining) return sums.add_last({loss, normaliser});
    if (teams.pieces == 1) return sums.add({loss, normaliser});
    if (!sums.is_last_block()) return;
  }
}

template <class T, class S, int Mode, class F>
__global__ void __launch_bounds__(kThreads) rows_grad_along(F f, const __grid_constant__ Rows r, RowTeams teams) {
  using Row = RowReader<T, Mode, F>;
  const double scale = grad_scale(r);
  T mass = T(0);
  if constexpr (Row::has_shares && Row::has_indices) {
    const Row any(f, r, 0);
    mass = any.shares_are_one() ? T(r.classes) : team_mass(any, teams);
  }
  for (int64_t i = teams.first(); i < r.it.numel * teams.pieces; i += teams.count()) {
    const int64_t at = teams.pieces == 1 ? i : int(i) / teams.pieces;
    const Row row(f, r, at);
    if constexpr (Row::has_shares && !Row::has_indices) mass = team_mass(row, teams);
    const LogSum<T> lse = row.log_sum_exp();
    const RowCoefficients<T> k = row.coefficients(lse, mass, scale);
    row.with_weights([&](auto weighted) {
      PieceReader<T, S, Mode, F, weighted>(row, teams, int(i - at * teams.pieces)).write_slopes(lse, k);
    });
  }
}

// ---- the host's part

// From how many rows on a warp each keeps all of a GPU at work, and below how many a block each does not.
#if defined(LOSSREG_EMULATE)
constexpr int64_t kManyRows = 512;  // so that a test may have them
#else
constexpr int64_t kManyRows = 8192;
#endif
constexpr int64_t kFewRows = 256;

// A warp a row, a block a row, or several blocks a row, by the sizes alone. `whole`: by one team.
inline RowTeams row_teams(const Rows& r, bool whole) {
  // blocks that a few rows are shared by, of at least so many classes
  constexpr int64_t kBlocks = 1024, kLeast = 4096;
  const int64_t rows = r.it.numel, classes = r.classes;
  const bool by_warp = classes <= 1024 || (classes <= 16384 && rows >= kManyRows);
  RowTeams teams{!by_warp, 1, int(classes)};
  if (by_warp || whole || rows >= kFewRows || rows == 0) return teams;
  const int64_t pieces = std::min((kBlocks + rows - 1) / rows, (classes + kLeast - 1) / kLeast);
  // a whole number of packs for each thread
  constexpr int64_t kGroup = kThreads * 8;
  const int64_t length = (classes + pieces - 1) / pieces;
  teams.length = int(std::min(classes, (length + kGroup - 1) / kGroup * kGroup));
  teams.pieces = int((classes + teams.length - 1) / teams.length);
  return teams;
}
inline unsigned team_blocks(const Rows& r, const RowTeams& teams) {
  return blocks_for(r.it.numel * teams.pieces * teams.warps() * 32, 1);
}

}  // namespace lossreg::cuda
