#pragma once
// The vector loops of the CPU's group kernels: across groups, one member at a time, and along the members of one group.
#include "cpu_tiles.h"
#include "groupwise.h"

namespace lossreg::cpu {

constexpr int kLanes = 16;           // partial sums along a group
constexpr int64_t kGroupTile = 512;  // groups taken together, at most

// What is known of a tile's groups: one entry a group.
template <class T, class F>
struct GroupArrays {
  alignas(64) T max[kMostMaxima][kGroupTile];
  alignas(64) T sum[F::sums][kGroupTile];
  alignas(64) T coefficient[F::coefficients][kGroupTile];
  alignas(64) T label[kGroupTile];
  alignas(64) T factor[kGroupTile];       // the gradient that comes in; 0 for an ignored group
  alignas(64) int32_t index[kGroupTile];  // the member of the class index; -1 where there is none
  alignas(64) int32_t valid[kGroupTile];  // not ignored
};

// ---- vectors across groups: n groups, one member at a time

template <class T, int Mode, class F>
LOSSREG_CLONES void raise_maxima(const F& f, GroupArrays<T, F>& g, const T* const* members, int32_t c, int64_t n) {
  constexpr int K = F::maxima(Mode);
  const MemberBody<F, Mode> body{f};
  const T* at[F::members];
  for (int k = 0; k < F::members; k++) at[k] = members[k];
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T x[F::members], y[K];
    for (int k = 0; k < F::members; k++) x[k] = at[k][i];
    body.candidates(x, g.index[i] == c, y);
    for (int k = 0; k < K; k++) g.max[k][i] = y[k] > g.max[k][i] ? y[k] : g.max[k][i];
  }
}
// A function of its own: what goes through pointers inside of the loop, as the maxima do, keeps GCC from vectorising
// it.
template <class T, int Mode, class F>
HD void add_terms_at(const MemberBody<F, Mode>& body, GroupArrays<T, F>& g, const T* const (&at)[F::members], int32_t c,
                     int64_t i) {
  T x[F::members], max[kMostMaxima], y[F::sums];
  for (int k = 0; k < F::members; k++) x[k] = at[k][i];
  for (int k = 0; k < kMostMaxima; k++) max[k] = k < F::maxima(Mode) ? g.max[k][i] : T(0);
  body.terms(max, x, g.index[i] == c, y);
  for (int k = 0; k < F::sums; k++) g.sum[k][i] += y[k];
}
template <class T, int Mode, class F>
LOSSREG_CLONES void add_terms(const F& f, GroupArrays<T, F>& g, const T* const* members, int32_t c, int64_t n) {
  const MemberBody<F, Mode> body{f};
  const T* at[F::members];
  for (int k = 0; k < F::members; k++) at[k] = members[k];
#pragma omp simd
  for (int64_t i = 0; i < n; i++) add_terms_at<T, Mode>(body, g, at, c, i);
}
template <class T, int Mode, class F>
LOSSREG_CLONES void grad_members(const F& f, const GroupArrays<T, F>& g, const T* const* members, T* const* out,
                                 int64_t count, int32_t c, int64_t n) {
  const MemberBody<F, Mode> body{f};
  const T* at[F::members];
  T* to[F::gradients];
  for (int k = 0; k < F::members; k++) at[k] = members[k];
  for (int k = 0; k < F::gradients; k++) to[k] = out[k];
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T x[F::members], coefficients[F::coefficients], y[F::gradients];
    for (int k = 0; k < F::members; k++) x[k] = at[k][i];
    for (int k = 0; k < F::coefficients; k++) coefficients[k] = g.coefficient[k][i];
    body.grad(coefficients, T(count), x, g.index[i] == c, y);
    const T factor = g.factor[i];
    // an ignored group stays 0 whatever it holds
    for (int k = 0; k < F::gradients; k++) to[k][i] = factor == T(0) ? T(0) : factor * y[k];
  }
}

// ---- vectors along the n members of one group, of which `hit` is the class index's

template <class T, int Mode, class F>
LOSSREG_CLONES void maxima_along(const F& f, const T* const* members, int64_t hit, T (&max)[kMostMaxima], int64_t n) {
  constexpr int K = F::maxima(Mode);
  const MemberBody<F, Mode> body{f};
  const T* at[F::members];
  for (int k = 0; k < F::members; k++) at[k] = members[k];
  T m0 = max[0], m1 = max[1], m2 = max[2];
#pragma omp simd reduction(max : m0, m1, m2)
  for (int64_t c = 0; c < n; c++) {
    T x[F::members], y[K];
    for (int k = 0; k < F::members; k++) x[k] = at[k][c];
    body.candidates(x, c == hit, y);
    m0 = y[0] > m0 ? y[0] : m0;
    if constexpr (K > 1) m1 = y[1] > m1 ? y[1] : m1;
    if constexpr (K > 2) m2 = y[2] > m2 ? y[2] : m2;
  }
  max[0] = m0, max[1] = m1, max[2] = m2;
}
// The sum of 2 * Half lanes, by halves.
template <int Half, class T>
HD T folded(const T* lanes) {
  T half[Half];
  for (int j = 0; j < Half; j++) half[j] = lanes[j] + lanes[Half + j];
  if constexpr (Half > 1) return folded<Half / 2>(half);
  return half[0];
}
// The terms of member c into lane j of each sum.
template <class T, int Mode, class F>
HD void add_to_lane(const MemberBody<F, Mode>& body, const T* const (&at)[F::members], const T (&max)[kMostMaxima],
                    int64_t hit, int64_t c, T (&lanes)[F::sums][kLanes], int j) {
  T x[F::members], y[F::sums];
  for (int k = 0; k < F::members; k++) x[k] = at[k][c];
  body.terms(max, x, c == hit, y);
  for (int k = 0; k < F::sums; k++) lanes[k][j] += y[k];
}
template <class T, int Mode, class F>
LOSSREG_CLONES void terms_along(const F& f, const T* const* members, int64_t hit, const T (&max)[kMostMaxima],
                                double (&sum)[kMostSums], int64_t n) {
  const MemberBody<F, Mode> body{f};
  const T* at[F::members];
  for (int k = 0; k < F::members; k++) at[k] = members[k];
  T m[kMostMaxima];
  for (int k = 0; k < kMostMaxima; k++) m[k] = max[k];
  alignas(64) T lanes[F::sums][kLanes] = {};
  int64_t whole = n / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
#pragma omp simd
    for (int j = 0; j < kLanes; j++) add_to_lane<T, Mode>(body, at, m, hit, c + j, lanes, j);
  }
#pragma omp simd
  for (int j = 0; j < int(n - whole); j++) add_to_lane<T, Mode>(body, at, m, hit, whole + j, lanes, j);
  for (int k = 0; k < F::sums; k++) sum[k] += double(folded<kLanes / 2>(lanes[k]));
}
template <class T, int Mode, class F>
LOSSREG_CLONES void grad_along(const F& f, const T (&coefficients)[F::coefficients], T factor, const T* const* members,
                               int64_t count, int64_t hit, T* const* out) {
  const MemberBody<F, Mode> body{f};
  const T* at[F::members];
  T* to[F::gradients];
  for (int k = 0; k < F::members; k++) at[k] = members[k];
  for (int k = 0; k < F::gradients; k++) to[k] = out[k];
  T k0[F::coefficients];
  for (int k = 0; k < F::coefficients; k++) k0[k] = coefficients[k];
#pragma omp simd
  for (int64_t c = 0; c < count; c++) {
    T x[F::members], y[F::gradients];
    for (int k = 0; k < F::members; k++) x[k] = at[k][c];
    body.grad(k0, T(count), x, c == hit, y);
    for (int k = 0; k < F::gradients; k++) to[k][c] = factor * y[k];
  }
}

// ---- a tile's groups, from maxima and sums

template <class T, class F>
HD Group<T> group_at(const GroupArrays<T, F>& g, const Group<T>& empty, int64_t i) {
  Group<T> one = empty;
  for (int k = 0; k < kMostMaxima; k++) one.max[k] = g.max[k][i];
  for (int k = 0; k < F::sums; k++) one.sum[k] = g.sum[k][i];
  one.label = g.label[i];
  return one;
}
template <class T, int Mode, class F>
HD T value_at(const F& f, const GroupArrays<T, F>& g, const Group<T>& empty, int64_t i) {
  return ModesOf<F>::template value<Mode, T>(f, group_at(g, empty, i));
}
template <class T, int Mode, class F>
HD void coefficients_at(const F& f, GroupArrays<T, F>& g, const Group<T>& empty, int64_t i) {
  auto c = f.template coefficients_of<Mode>(group_at(g, empty, i));
  for (int k = 0; k < F::coefficients; k++) g.coefficient[k][i] = c.of[k];
}

// The values; returns their sum. Ignored groups count 0.
template <class T, int Mode, class F>
LOSSREG_CLONES double finish_groups(const F& f, const GroupArrays<T, F>& g, const Group<T>& empty, T* value,
                                    int64_t n) {
  const F h = f;
  const Group<T> e = empty;
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; i++) {
    T v = value_at<T, Mode>(h, g, e, i);
    value[i] = g.valid[i] ? v : T(0);
    total += double(value[i]);
  }
  return total;
}
template <class T, int Mode, class F>
LOSSREG_CLONES void find_group_coefficients(const F& f, GroupArrays<T, F>& g, const Group<T>& empty, int64_t n) {
  const F h = f;
  const Group<T> e = empty;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) coefficients_at<T, Mode>(h, g, e, i);
}

}  // namespace lossreg::cpu
