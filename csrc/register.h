#pragma once
// From a family's list of formulas to the dispatcher: schemas, and for each op its kernel and the gradient's.
#include "pointwise.h"
#include "rowwise.h"

namespace lossreg {

// Is the n-th tensor argument of a schema optional?
constexpr bool is_optional(const char* args, int n) {
  for (int seen = -1; *args; args++)
    if (args[0] == 'T' && args[1] == 'e' && args[2] == 'n' && args[3] == 's' && ++seen == n) return args[6] == '?';
  return false;
}
template <class F, std::size_t K>
using TensorArg = std::conditional_t<is_optional(F::args, int(K)), std::optional<Tensor>, Tensor>;

// How an option of make() travels through the dispatcher.
template <class Option>
struct Boxed {
  using type = Option;
  template <class F>
  static Option unbox(Option o) {
    return o;
  }
};
template <class F, class = void>
struct has_batchmean : std::false_type {};
template <class F>
struct has_batchmean<F, std::void_t<decltype(F::batchmean)>> : std::true_type {};
template <>
struct Boxed<Reduction> {
  using type = std::string;
  template <class F>
  static Reduction unbox(const std::string& text) {
    return parse_reduction(F::name, text, has_batchmean<F>::value);
  }
};

template <class Option>
void note_reduction(std::optional<Reduction>& found, const Option& option) {
  if constexpr (std::is_same_v<Option, Reduction>) found = option;
}

// The kernels of one op with the signatures of its schemas. Kernel is a skeleton's: value(f, tensors, reduction, dtype)
// and grad(f, grad_output, tensors, reduction, mask), and where state is kept forward() and the state in grad.
template <class Kernel, class F, class Indices, class Make>
struct Entry;
template <class Kernel, class F, std::size_t... K, class... Option>
struct Entry<Kernel, F, std::index_sequence<K...>, F (*)(Option...)> {
  static constexpr bool reduces = (std::is_same_v<Option, Reduction> || ...);

  template <class... Text>
  static std::pair<F, std::optional<Reduction>> parse(const Text&... text) {
    std::tuple<Option...> options{Boxed<Option>::template unbox<F>(text)...};
    std::optional<Reduction> reduction;
    std::apply([&](const auto&... o) { (note_reduction(reduction, o), ...); }, options);
    return {std::apply(&F::make, options), reduction};
  }

  static Tensor activation(TensorArg<F, K>... x, typename Boxed<Option>::type... o) {
    auto [f, reduction] = parse(o...);
    return Kernel::value(f, {x...}, reduction, std::nullopt);
  }
  static Tensor loss(TensorArg<F, K>... x, typename Boxed<Option>::type... o, std::optional<ScalarType> dtype) {
    auto [f, reduction] = parse(o...);
    return Kernel::value(f, {x...}, reduction, dtype);
  }
  static std::tuple<Tensor, Tensor> forward(TensorArg<F, K>... x, typename Boxed<Option>::type... o,
                                            std::optional<ScalarType> dtype) {
    auto [f, reduction] = parse(o...);
    return Kernel::forward(f, {x...}, *reduction, dtype);
  }
  static std::vector<Tensor> grad(Tensor grad_output, TensorArg<F, K>... x, typename Boxed<Option>::type... o,
                                  std::vector<bool> output_mask) {
    auto [f, reduction] = parse(o...);
    return Kernel::grad(f, grad_output, {x...}, reduction, output_mask);
  }
  static std::vector<Tensor> grad_with_state(Tensor grad_output, Tensor state, TensorArg<F, K>... x,
                                             typename Boxed<Option>::type... o, std::vector<bool> output_mask) {
    auto [f, reduction] = parse(o...);
    return Kernel::grad(f, grad_output, state, {x...}, *reduction, output_mask);
  }
};
template <class Kernel, class F>
using EntryOf = Entry<Kernel, F, std::make_index_sequence<F::inputs>, decltype(&F::make)>;

struct NoKernel {};

template <class F, class Library>
void define(Library& m, bool keeps_state) {
  using E = EntryOf<NoKernel, F>;
  std::string name = F::name, args = F::args, dtype = E::reduces ? ", *, ScalarType? dtype=None" : "";
  std::string mask = ", *, bool[" + std::to_string(F::gradients) + "] output_mask";
  m.def((name + "(" + args + dtype + ") -> Tensor").c_str());
  if (keeps_state) m.def((name + "_forward(" + args + dtype + ") -> (Tensor, Tensor)").c_str());
  std::string state = keeps_state ? "Tensor state, " : "";
  m.def((name + "_backward(Tensor grad_output, " + state + args + mask + ") -> Tensor[]").c_str());
}

template <class Library, class... F>
void define(Library& m, PointwiseOps<F...>) {
  (define<F>(m, false), ...);
}
template <class Library, class... F>
void define(Library& m, RowOps<F...>) {
  (define<F>(m, true), ...);
}

template <class Backend, class Library, class... F>
void implement(Library& m, PointwiseOps<F...>) {
  auto one = [&](auto* tag) {
    using Formula = std::remove_pointer_t<decltype(tag)>;
    using E = EntryOf<PointwiseKernel<Formula, Backend>, Formula>;
    if constexpr (E::reduces) m.impl(Formula::name, TORCH_BOX(&E::loss));
    else m.impl(Formula::name, TORCH_BOX(&E::activation));
    m.impl((std::string(Formula::name) + "_backward").c_str(), TORCH_BOX(&E::grad));
  };
  (one(static_cast<F*>(nullptr)), ...);
}
template <class Backend, class Library, class... F>
void implement(Library& m, RowOps<F...>) {
  auto one = [&](auto* tag) {
    using Formula = std::remove_pointer_t<decltype(tag)>;
    using E = EntryOf<RowKernel<Formula, Backend>, Formula>;
    m.impl(Formula::name, TORCH_BOX(&E::loss));
    m.impl((std::string(Formula::name) + "_forward").c_str(), TORCH_BOX(&E::forward));
    m.impl((std::string(Formula::name) + "_backward").c_str(), TORCH_BOX(&E::grad_with_state));
  };
  (one(static_cast<F*>(nullptr)), ...);
}

}  // namespace lossreg
