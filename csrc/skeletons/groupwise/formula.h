#pragma once
// The contract of a group formula, and its functions as the backends call them. A group is some members, such as the
// two vectors of an embedding loss or the scores of a position, number by number: member m has one number x of each
// operand that has members. The value of a group is found in three steps, and its gradient in two:
//   candidates<Mode>(x...)       of each member, the numbers that the maxima over the group are taken of, if any
//   terms<Mode>(max, x...)       of each member, given the maxima, the numbers that are summed over the group
//   value<Mode>(group)           the group's value, of its maxima and sums
//   coefficients_of<Mode>(group) what the gradient needs to know of the whole group. This is the state: so the backward
//                                pass reads the members once
//   grad<Mode>(coefficients, x...)   of each member, the gradient of the value in x
// Beside these and what ../formula.h asks for, a formula declares
//   along, members                    where the members lie; how many of the inputs, the leading ones, have them
//   maxima(mode), sums, coefficients  how many of them there are
//   least_classes                     along classes: how many classes there must be
// and may declare
//   carry(from, to, sum)              what sums of terms are that were taken with smaller maxima: then one pass over
//                                     the members can find maxima and sums
#include <utility>

#include "../formula.h"

namespace lossreg {

namespace declared {
template <class F>
using carry = decltype(&F::template carry<float>);
}  // namespace declared

constexpr int kMostMembers = 3, kMostMaxima = 3, kMostSums = 5;
template <class T, int N>
struct Values {
  T of[N];
};
template <class T>
struct Group {
  T max[kMostMaxima], sum[kMostSums];
  // How much of operand k's expanded members are its own: 1, or 1 / members where one member was expanded to all.
  T own[kMostMembers];
  T label;    // the tensor that has no members, if there is one that is no class index
  T members;  // how many
};
template <class T, int N>
struct Coefficients {
  T of[N];
  T members;
};
// The members lie along the last dimension, or along the classes of (C) or (N, C, d1 ... dk). A formula may read one
// tensor without members after those with members. Along the last dimension that is the group's label; along classes
// it holds class indices, and candidates, terms and grad get one more argument: `hit`, is x of the class of that index?
enum class Along { last, classes };

// Does it read class indices?
template <class F>
constexpr bool has_hits = F::along == Along::classes && (F::inputs > F::members);
// Does it read a label for each group?
template <class F>
constexpr bool has_label = F::along == Along::last && (F::inputs > F::members);

// A formula's functions of one member, with arrays for arguments and results: GCC does not vectorise a loop in which a
// function returns a struct.
template <class F, int Mode>
struct MemberBody {
  F f;
  static constexpr auto kMembers = std::make_index_sequence<F::members>{};

  template <class T, int N>
  HD void candidates(const T (&x)[F::members], bool hit, T (&y)[N]) const {
    candidates(x, hit, y, kMembers);
  }
  template <class T>
  HD void terms(const T (&max)[kMostMaxima], const T (&x)[F::members], bool hit, T (&y)[F::sums]) const {
    terms(max, x, hit, y, kMembers);
  }
  template <class T>
  HD void grad(const T (&c)[F::coefficients], T members, const T (&x)[F::members], bool hit,
               T (&y)[F::gradients]) const {
    Coefficients<T, F::coefficients> coefficients;
    for (int k = 0; k < F::coefficients; k++) coefficients.of[k] = c[k];
    coefficients.members = members;
    grad(coefficients, x, hit, y, kMembers);
  }

 private:
  template <class T, int N, std::size_t... K>
  HD void candidates(const T (&x)[F::members], [[maybe_unused]] bool hit, T (&y)[N], std::index_sequence<K...>) const {
    if constexpr (has_hits<F>) put(f.template candidates<Mode>(x[K]..., hit), y);
    else put(f.template candidates<Mode>(x[K]...), y);
  }
  template <class T, std::size_t... K>
  HD void terms(const T (&max)[kMostMaxima], const T (&x)[F::members], [[maybe_unused]] bool hit, T (&y)[F::sums],
                std::index_sequence<K...>) const {
    if constexpr (has_hits<F>) put(f.template terms<Mode>(max, x[K]..., hit), y);
    else put(f.template terms<Mode>(max, x[K]...), y);
  }
  template <class T, std::size_t... K>
  HD void grad(const Coefficients<T, F::coefficients>& c, const T (&x)[F::members], [[maybe_unused]] bool hit,
               T (&y)[F::gradients], std::index_sequence<K...>) const {
    if constexpr (has_hits<F>) put(f.template grad<Mode>(c, x[K]..., hit), y);
    else put(f.template grad<Mode>(c, x[K]...), y);
  }
  template <class Result, class T, int N>
  HD static void put(const Result& result, T (&y)[N]) {
    static_assert(sizeof result.of == sizeof y, "of as many numbers as maxima, sums, gradients say");
    for (int k = 0; k < N; k++) y[k] = result.of[k];
  }
};

}  // namespace lossreg
