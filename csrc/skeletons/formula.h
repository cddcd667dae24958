#pragma once
// What a formula is made of. An op is a struct with
//   name, args       the schema's text: name(args) -> Tensor
//   inputs           how many tensors it reads, the optional ones last
//   gradients        with respect to how many of them, the leading ones, it is differentiable
//   make(...)        from the schema's options, in their order, checked
//   value, grad      the mathematics, next to each other
// in plain scalar code over math.h, so that one text serves the CPU's vector loop, a GPU, and the dual numbers of the
// tests. It may declare more, each under a name of its own:
//   modes            how many modes it has, for what is decided once a call and not once an element: mode() chooses,
//                    and value and grad take it as their first template argument
//   typed_by         which operands give the result its dtype, a bit each: for where torch's own function takes that
//                    of one alone, perhaps because it writes into a tensor like it. Without it, all operands do
//   batchmean        "batchmean" is a reduction too
//   align            pointwise: align(shapes) sees the operands' shapes before they broadcast; it may refuse them, and
//                    may give one a dimension of 1
//   domains          pointwise: what an error says of each leading operand's domain; in_domain(x) is the test
//   says_broadcast   pointwise: a target of another shape broadcasts, but is mostly a mistake: warn as torch does
//   numbers          boxwise: how many numbers a box is, where these are not the 4 of two corners (boxwise/formula.h)
//   loss             standalone: it has the option dtype although it has no reduction
//   forward_mask     standalone: its state depends on which gradients will be asked for, so NAME_forward is told
//   results          standalone: the names of its results, where it has several: {"mean", "variance"}
#include <iterator>

#include "../base/check.h"
#include "../base/has.h"
#include "../base/math.h"
#include "../base/missing.h"

namespace lossreg {

// has<declared::modes, F>
namespace declared {
template <class F>
using modes = decltype(F::modes);
template <class F>
using typed_by = decltype(F::typed_by);
template <class F>
using batchmean = decltype(F::batchmean);
template <class F>
using align = decltype(&F::align);
template <class F>
using domains = decltype(F::domains);
template <class F>
using says_broadcast = decltype(F::says_broadcast);
template <class F>
using numbers = decltype(F::numbers);
template <class F>
using loss = decltype(F::loss);
template <class F>
using forward_mask = decltype(F::forward_mask);
template <class F>
using results = decltype(F::results);
template <class F>
using plain = typename F::Plain;
}  // namespace declared

template <class F>
constexpr int result_count() {
  if constexpr (has<declared::results, F>) return int(std::size(F::results));
  else return 1;
}

// An option as a formula keeps it: T(option) costs nothing, where a GPU would convert a double once an element.
struct Parameter {
  double exact;
  float rounded;

  HD Parameter(double x) : exact(x), rounded(float(x)) {}
  HD operator double() const { return exact; }
  HD explicit operator float() const { return rounded; }
};

// d value / d input, one an input.
template <class T, int N>
struct Gradients {
  T of[N];
};

// How the shapes of the required tensors must fit. Optional tensors expand to the shape of the first.
enum class Shapes { broadcast, same, same_rank, to_input };

// Of &F::make: is a reduction among the options?
template <class F, class... Option>
constexpr bool takes_reduction(F (*)(Option...)) {
  return (std::is_same_v<Option, Reduction> || ...);
}

// Does operand k give the result its dtype?
template <class F>
constexpr bool is_typed_by([[maybe_unused]] int k) {
  if constexpr (has<declared::typed_by, F>) return F::typed_by >> k & 1;
  else return true;
}

// Lists of ops, one a skeleton: pointwise/, rowwise/, boxwise/, groupwise/. An op of WrittenOps has kernels of its
// own (standalone.h).
template <class... Formulas>
struct PointwiseOps {};
template <class... Formulas>
struct RowOps {};
template <class... Formulas>
struct BoxOps {};
template <class... Formulas>
struct GroupOps {};
template <class... Formulas>
struct WrittenOps {};
// An op that is no function of tensors to a tensor has a schema of its own, and run<Backend> with its arguments.
template <class... Procedures>
struct OwnSchemaOps {};
// A family of ops over several skeletons.
template <class... Lists>
struct Family {};

// F's functions in a mode; a formula without modes has one.
template <class F>
constexpr int mode_count() {
  if constexpr (has<declared::modes, F>) return F::modes;
  else return 1;
}
template <class F>
int mode_of([[maybe_unused]] const F& f) {
  if constexpr (has<declared::modes, F>) return f.mode();
  else return 0;
}
template <int Mode, class T, class F, class... X>
HD T value_of(const F& f, X... x) {
  if constexpr (has<declared::modes, F>) return f.template value<Mode>(x...);
  else return f.value(x...);
}
template <int Mode, class F, class... X>
HD auto grad_of(const F& f, X... x) {
  if constexpr (has<declared::modes, F>) return f.template grad<Mode>(x...);
  else return f.grad(x...);
}

// Calls use(std::integral_constant<int, mode>) for the mode that f is in.
template <class F, int Mode = 0, class Use>
void with_mode(const F& f, Use use) {
  if constexpr (Mode + 1 < mode_count<F>()) {
    if (mode_of(f) != Mode) return with_mode<F, Mode + 1>(f, use);
  }
  use(std::integral_constant<int, Mode>{});
}

}  // namespace lossreg
