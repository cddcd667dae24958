#pragma once
// The vector loops of the CPU's group kernels: across groups, one member at a time, and along the members of one group.
#include "../../cpu/tiles.h"
#include "kernel.h"

namespace lossreg::cpu {

constexpr int kPartialSums = 16;     // that a sum along a group is added up in, side by side
constexpr int64_t kGroupTile = 512;  // the most groups that are taken together

// What is known of a tile's groups: one entry a group.
template <class T, class F>
struct GroupArrays {
  alignas(64) T max[kMostMaxima][kGroupTile];
  alignas(64) T sum[all_sums<F>][kGroupTile];
  alignas(64) T coefficient[F::coefficients][kGroupTile];
  alignas(64) T label[kGroupTile];
  alignas(64) T factor[kGroupTile];       // the gradient that comes in; 0 for an ignored group
  alignas(64) int32_t index[kGroupTile];  // the member of the class index or the label; -1 where there is none
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
    body.candidates(x, c - g.index[i], y);
    for (int k = 0; k < K; k++) g.max[k][i] = y[k] > g.max[k][i] ? y[k] : g.max[k][i];
  }
}
// The terms of one member, or with `Later` its later terms, given what is known of the group by then: its maxima, or
// what MemberBody::later_terms takes.
template <class F, int Mode, bool Later>
constexpr int known_numbers = Later ? MemberBody<F, Mode>::kKnown : kMostMaxima;
template <class F, bool Later>
constexpr int number_of_terms = Later ? later_sums<F>() : F::sums;
template <bool Later, int Mode, class T, class F, class Place>
HD void terms_of(const MemberBody<F, Mode>& body, const T (&known)[known_numbers<F, Mode, Later>],
                 const T (&x)[F::members], Place place, T (&y)[number_of_terms<F, Later>]) {
  if constexpr (Later) body.later_terms(known, x, place, y);
  else body.terms(known, x, place, y);
}
// Apart from the loop below, since GCC does not vectorise a loop that itself holds the array of what is known, which
// terms() takes by reference.
template <bool Later, class T, int Mode, class F>
HD void add_terms_at(const MemberBody<F, Mode>& body, GroupArrays<T, F>& g, const T* const (&at)[F::members], T count,
                     int32_t c, int64_t i) {
  constexpr int kFirst = Later ? F::sums : 0, kTerms = number_of_terms<F, Later>;
  T x[F::members], known[known_numbers<F, Mode, Later>], y[kTerms];
  for (int k = 0; k < F::members; k++) x[k] = at[k][i];
  if constexpr (Later) {
    for (int k = 0; k < F::coefficients; k++) known[k] = g.coefficient[k][i];
    known[F::coefficients] = count;
  } else {
    for (int k = 0; k < kMostMaxima; k++) known[k] = k < F::maxima(Mode) ? g.max[k][i] : T(0);
  }
  terms_of<Later>(body, known, x, c - g.index[i], y);
  for (int k = 0; k < kTerms; k++) g.sum[kFirst + k][i] += y[k];
}
template <bool Later, class T, int Mode, class F>
LOSSREG_CLONES void add_terms(const F& f, GroupArrays<T, F>& g, const T* const* members, int64_t count, int32_t c,
                              int64_t n) {
  const MemberBody<F, Mode> body{f};
  const T* at[F::members];
  for (int k = 0; k < F::members; k++) at[k] = members[k];
#pragma omp simd
  for (int64_t i = 0; i < n; i++) add_terms_at<Later, T, Mode>(body, g, at, T(count), c, i);
}
template <class T, int Mode, class F>
LOSSREG_CLONES void grad_members(const F& f, const GroupArrays<T, F>& g, const T* const* members, T* const* out,
                                 int64_t count, int32_t c, int64_t n) {
  const MemberBody<F, Mode> body{f};
  const T* at[F::members];
  T* to[member_gradients<F>];
  for (int k = 0; k < F::members; k++) at[k] = members[k];
  for (int k = 0; k < member_gradients<F>; k++) to[k] = out[k];
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T x[F::members], coefficients[F::coefficients], y[member_gradients<F>];
    for (int k = 0; k < F::members; k++) x[k] = at[k][i];
    for (int k = 0; k < F::coefficients; k++) coefficients[k] = g.coefficient[k][i];
    body.grad(coefficients, T(count), x, c - g.index[i], y);
    const T factor = g.factor[i];
    // an ignored group stays 0 whatever it holds
    for (int k = 0; k < member_gradients<F>; k++) to[k][i] = factor == T(0) ? T(0) : factor * y[k];
  }
}

// ---- vectors along the n members of one group, which memory holds as S. `index` is the member that the class index or
// the label names, -1 without one.

template <class T, int Mode, class F, class S>
LOSSREG_CLONES void maxima_along(const F& f, const S* const* members, int64_t index, T (&max)[kMostMaxima], int64_t n) {
  constexpr int K = F::maxima(Mode);
  using L = Lane<S>;
  const MemberBody<F, Mode> body{f};
  const Word<S>* at[F::members];
  for (int k = 0; k < F::members; k++) at[k] = words(members[k]);
  T m0 = max[0], m1 = max[1], m2 = max[2];
#pragma omp simd reduction(max : m0, m1, m2)
  for (int64_t c = 0; c < n / L::width; c++) {
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) {
      T x[F::members], y[K];
      for (int k = 0; k < F::members; k++) x[k] = L::template get<T>(at[k][c], l);
      body.candidates(x, c * L::width + l - index, y);
      m0 = y[0] > m0 ? y[0] : m0;
      if constexpr (K > 1) m1 = y[1] > m1 ? y[1] : m1;
      if constexpr (K > 2) m2 = y[2] > m2 ? y[2] : m2;
    }
  }
  max[0] = m0, max[1] = m1, max[2] = m2;
  if (n % L::width) {
    T x[F::members], y[K];
    for (int k = 0; k < F::members; k++) x[k] = widen<T>(members[k][n - 1]);
    body.candidates(x, n - 1 - index, y);
    for (int k = 0; k < K; k++) max[k] = y[k] > max[k] ? y[k] : max[k];
  }
}
// The sum of 2 * Half numbers: the second half is added to the first, until one is left.
template <int Half, class T>
HD T folded(const T* lanes) {
  T half[Half];
  for (int j = 0; j < Half; j++) half[j] = lanes[j] + lanes[Half + j];
  if constexpr (Half > 1) return folded<Half / 2>(half);
  return half[0];
}
// Adds the terms of one member, x, to partial sum j of each sum.
template <bool Later, int Mode, class T, class F, int N>
HD void add_to_lane(const MemberBody<F, Mode>& body, const T (&x)[F::members], const T (&known)[N], int64_t place,
                    T (&lanes)[number_of_terms<F, Later>][kPartialSums], int j) {
  T y[number_of_terms<F, Later>];
  terms_of<Later>(body, known, x, place, y);
  for (int k = 0; k < number_of_terms<F, Later>; k++) lanes[k][j] += y[k];
}
// Adds the terms of the members that word c holds.
template <bool Later, class T, int Mode, class S, class F, int N>
HD void add_word(const MemberBody<F, Mode>& body, const Word<S>* const (&at)[F::members], const T (&known)[N],
                 int64_t index, int64_t c, T (&lanes)[number_of_terms<F, Later>][kPartialSums], int j) {
  using L = Lane<S>;
#pragma GCC unroll 2
  for (int l = 0; l < L::width; l++) {
    T x[F::members];
    for (int k = 0; k < F::members; k++) x[k] = L::template get<T>(at[k][c], l);
    add_to_lane<Later>(body, x, known, c * L::width + l - index, lanes, j);
  }
}
template <bool Later, class T, int Mode, class F, class S, int N>
LOSSREG_CLONES void terms_along(const F& f, const S* const* members, int64_t index, const T (&given)[N], double* sum,
                                int64_t n) {
  const MemberBody<F, Mode> body{f};
  const Word<S>* at[F::members];
  for (int k = 0; k < F::members; k++) at[k] = words(members[k]);
  T known[N];
  for (int k = 0; k < N; k++) known[k] = given[k];
  constexpr int kTerms = number_of_terms<F, Later>;
  alignas(64) T lanes[kTerms][kPartialSums] = {};
  int64_t count = n / Lane<S>::width, whole = count / kPartialSums * kPartialSums;
  for (int64_t c = 0; c < whole; c += kPartialSums) {
#pragma omp simd
    for (int j = 0; j < kPartialSums; j++) add_word<Later, T, Mode, S>(body, at, known, index, c + j, lanes, j);
  }
#pragma omp simd
  for (int j = 0; j < int(count - whole); j++) add_word<Later, T, Mode, S>(body, at, known, index, whole + j, lanes, j);
  if (n % Lane<S>::width) {
    T x[F::members];
    for (int k = 0; k < F::members; k++) x[k] = widen<T>(members[k][n - 1]);
    add_to_lane<Later>(body, x, known, n - 1 - index, lanes, 0);
  }
  for (int k = 0; k < kTerms; k++) sum[k] += double(folded<kPartialSums / 2>(lanes[k]));
}

// Groups that begin `step` after each other, and whose members lie side by side.
template <class S>
struct Packed {
  S* data;
  int64_t step;
};
// The gradients in the first O tensors, of n groups from `first` on with `count` members each.
template <class T, int Mode, int O, class F, class S>
LOSSREG_CLONES void grad_along(const F& f, const GroupArrays<T, F>& g, int64_t first, int64_t n,
                               const Packed<const S>* members, const Packed<S>* out, int64_t count) {
  using L = Lane<S>;
  const MemberBody<F, Mode> body{f};
  for (int64_t i = 0; i < n; i++) {
    const S* x[F::members];
    S* y[O];
    for (int k = 0; k < F::members; k++) x[k] = members[k].data + i * members[k].step;
    for (int k = 0; k < O; k++) y[k] = out[k].data + i * out[k].step;
    const T factor = g.factor[first + i];
    if (factor == T(0)) {  // so is an ignored group's, whatever it holds
      for (int k = 0; k < O; k++) std::memset(y[k], 0, size_t(count) * sizeof(S));
      continue;
    }
    const int64_t index = g.index[first + i];
    T coefficients[F::coefficients];
    for (int k = 0; k < F::coefficients; k++) coefficients[k] = g.coefficient[k][first + i];
    const Word<S>* at[F::members];
    Word<S>* to[O];
    for (int k = 0; k < F::members; k++) at[k] = words(x[k]);
    for (int k = 0; k < O; k++) to[k] = words(y[k]);
#pragma omp simd
    for (int64_t c = 0; c < count / L::width; c++) {
      T grad[O][L::width];
#pragma GCC unroll 2
      for (int l = 0; l < L::width; l++) {
        T a[F::members], b[member_gradients<F>];
        for (int k = 0; k < F::members; k++) a[k] = L::template get<T>(at[k][c], l);
        body.grad(coefficients, T(count), a, c * L::width + l - index, b);
        for (int k = 0; k < O; k++) grad[k][l] = factor * b[k];
      }
      for (int k = 0; k < O; k++) to[k][c] = L::of(grad[k]);
    }
    if (count % L::width) {
      T a[F::members], b[member_gradients<F>];
      for (int k = 0; k < F::members; k++) a[k] = widen<T>(x[k][count - 1]);
      body.grad(coefficients, T(count), a, count - 1 - index, b);
      for (int k = 0; k < O; k++) y[k][count - 1] = Narrow<S>::from(factor * b[k]);
    }
  }
}

// ---- what follows from the maxima and sums of a tile's groups

template <class T, class F>
HD Group<T> group_at(const GroupArrays<T, F>& g, const Group<T>& empty, int64_t i) {
  Group<T> one = empty;
  for (int k = 0; k < kMostMaxima; k++) one.max[k] = g.max[k][i];
  for (int k = 0; k < all_sums<F>; k++) one.sum[k] = g.sum[k][i];
  one.label = g.label[i];
  return one;
}
template <class T, int Mode, class F>
HD T value_at(const F& f, const GroupArrays<T, F>& g, const Group<T>& empty, int64_t i) {
  return value_of<Mode, T>(f, group_at(g, empty, i));
}
template <class T, int Mode, class F>
HD void coefficients_at(const F& f, GroupArrays<T, F>& g, const Group<T>& empty, int64_t i) {
  auto c = f.template coefficients_of<Mode>(group_at(g, empty, i));
  for (int k = 0; k < F::coefficients; k++) g.coefficient[k][i] = c.of[k];
}

// Writes the groups' values and returns their sum. That of an ignored group is 0.
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
