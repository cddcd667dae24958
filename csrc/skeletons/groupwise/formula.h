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
//   later, later_terms<Mode>(coefficients, x...)
//                                     of each member so many more numbers that are summed, which take the maxima and
//                                     sums to compute: these come as coefficients, made of a group whose later sums are
//                                     0. In group.sum they stand behind the others
//   place_of(label, members)          the member that the group's label points to; -1 where it points to none, which
//                                     is an error on the CPU and NaN on a GPU
//   in_words(mode)                    may a CPU take words of two bfloat16 apart in the loops of this mode? It does
//                                     without a word; not where the compiler makes no vectors of them, as of powers
// A formula with one gradient more than there are members is differentiable in its label too: its last coefficient is
// that slope.
#include <utility>

#include "../formula.h"

namespace lossreg {

namespace declared {
template <class F>
using carry = decltype(&F::template carry<float>);
template <class F>
using later = decltype(F::later);
template <class F>
using place_of = decltype(&F::template place_of<float>);
template <class F>
using in_words = decltype(F::in_words(0));
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
// it holds class indices, and the functions of a member get one more argument: `hit`, is x of the class of that index?
// Where a label points to a member, they get `place`: how many members behind that one x is.
enum class Along { last, classes };

// Does it read class indices?
template <class F>
constexpr bool has_hits = F::along == Along::classes && (F::inputs > F::members);
// Does it read a label for each group?
template <class F>
constexpr bool has_label = F::along == Along::last && (F::inputs > F::members);

// Does that label point to a member?
template <class F>
constexpr bool has_places = has_label<F> && has<declared::place_of, F>;
// Does each group have an index of a member, of either kind?
template <class F>
constexpr bool has_index = has_hits<F> || has_places<F>;

// Of all gradients, those in what has members; is there one in the label besides?
template <class F>
constexpr int member_gradients = F::gradients < F::members ? F::gradients : F::members;
template <class F>
constexpr bool has_label_gradient = F::gradients > F::members;

template <class F>
constexpr int later_sums() {
  if constexpr (has<declared::later, F>) return F::later;
  else return 0;
}
template <class F>
constexpr int all_sums = F::sums + later_sums<F>();

// A formula's functions of one member, with arrays for arguments and results: GCC does not vectorise a loop in which a
// function returns a struct.
template <class F, int Mode>
struct MemberBody {
  F f;
  static constexpr auto kMembers = std::make_index_sequence<F::members>{};
  // What later_terms is given: the coefficients, and how many members there are.
  static constexpr int kKnown = F::coefficients + 1;

  template <class T, class Place, int N>
  HD void candidates(const T (&x)[F::members], Place place, T (&y)[N]) const {
    candidates(x, place, y, kMembers);
  }
  template <class T, class Place>
  HD void terms(const T (&max)[kMostMaxima], const T (&x)[F::members], Place place, T (&y)[F::sums]) const {
    terms(max, x, place, y, kMembers);
  }
  template <class T, class Place, int N>
  HD void later_terms(const T (&known)[kKnown], const T (&x)[F::members], Place place, T (&y)[N]) const {
    later_terms(coefficients(known, known[F::coefficients]), x, place, y, kMembers);
  }
  template <class T, class Place>
  HD void grad(const T (&c)[F::coefficients], T members, const T (&x)[F::members], Place place,
               T (&y)[member_gradients<F>]) const {
    grad(coefficients(c, members), x, place, y, kMembers);
  }

 private:
  template <class T, int N>
  HD static Coefficients<T, F::coefficients> coefficients(const T (&of)[N], T members) {
    Coefficients<T, F::coefficients> c;
    for (int k = 0; k < F::coefficients; k++) c.of[k] = of[k];
    c.members = members;
    return c;
  }
  template <class T, class Place, int N, std::size_t... K>
  HD void candidates(const T (&x)[F::members], [[maybe_unused]] Place place, T (&y)[N],
                     std::index_sequence<K...>) const {
    if constexpr (has_hits<F>) put(f.template candidates<Mode>(x[K]..., place == 0), y);
    else if constexpr (has_places<F>) put(f.template candidates<Mode>(x[K]..., place), y);
    else put(f.template candidates<Mode>(x[K]...), y);
  }
  template <class T, class Place, std::size_t... K>
  HD void terms(const T (&max)[kMostMaxima], const T (&x)[F::members], [[maybe_unused]] Place place, T (&y)[F::sums],
                std::index_sequence<K...>) const {
    if constexpr (has_hits<F>) put(f.template terms<Mode>(max, x[K]..., place == 0), y);
    else if constexpr (has_places<F>) put(f.template terms<Mode>(max, x[K]..., place), y);
    else put(f.template terms<Mode>(max, x[K]...), y);
  }
  template <class T, class Place, int N, std::size_t... K>
  HD void later_terms(const Coefficients<T, F::coefficients>& c, const T (&x)[F::members], [[maybe_unused]] Place place,
                      T (&y)[N], std::index_sequence<K...>) const {
    if constexpr (has_hits<F>) put(f.template later_terms<Mode>(c, x[K]..., place == 0), y);
    else if constexpr (has_places<F>) put(f.template later_terms<Mode>(c, x[K]..., place), y);
    else put(f.template later_terms<Mode>(c, x[K]...), y);
  }
  template <class T, class Place, int N, std::size_t... K>
  HD void grad(const Coefficients<T, F::coefficients>& c, const T (&x)[F::members], [[maybe_unused]] Place place,
               T (&y)[N], std::index_sequence<K...>) const {
    if constexpr (has_hits<F>) put(f.template grad<Mode>(c, x[K]..., place == 0), y);
    else if constexpr (has_places<F>) put(f.template grad<Mode>(c, x[K]..., place), y);
    else put(f.template grad<Mode>(c, x[K]...), y);
  }
  template <class Result, class T, int N>
  HD static void put(const Result& result, T (&y)[N]) {
    static_assert(sizeof result.of == sizeof y, "of as many numbers as maxima, sums, later, gradients say");
    for (int k = 0; k < N; k++) y[k] = result.of[k];
  }
};

}  // namespace lossreg
