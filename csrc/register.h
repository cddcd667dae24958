#pragma once
// From a family's list of formulas to the dispatcher: schemas, and for each op its kernel and the gradient's.
#include "groupwise.h"
#include "pointwise.h"
#include "rowwise.h"
#include "written.h"

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

template <class F, class = void>
struct says_loss : std::false_type {};
template <class F>
struct says_loss<F, std::void_t<decltype(F::loss)>> : std::bool_constant<F::loss> {};
template <class F, class = void>
struct takes_forward_mask : std::false_type {};
template <class F>
struct takes_forward_mask<F, std::void_t<decltype(F::forward_mask)>> : std::bool_constant<F::forward_mask> {};

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
  // Has the option dtype. A formula without a reduction may say so of itself.
  static constexpr bool is_loss = (std::is_same_v<Option, Reduction> || ...) || says_loss<F>::value;

  template <class... Text>
  static std::pair<F, std::optional<Reduction>> parse(const Text&... text) {
    std::tuple<Option...> options{Boxed<Option>::template unbox<F>(text)...};
    std::optional<Reduction> reduction;
    std::apply([&](const auto&... o) { (note_reduction(reduction, o), ...); }, options);
    return {std::apply(&F::make, options), reduction};
  }

  static Tensor activation(TensorArg<F, K>... x, typename Boxed<Option>::type... o) {
    auto [f, reduction] = parse(o...);
    return Kernel::value(f, Inputs{x...}, reduction, std::optional<ScalarType>{});
  }
  static Tensor loss(TensorArg<F, K>... x, typename Boxed<Option>::type... o, std::optional<ScalarType> dtype) {
    auto [f, reduction] = parse(o...);
    return Kernel::value(f, Inputs{x...}, reduction, dtype);
  }
  static std::tuple<Tensor, Tensor> forward(TensorArg<F, K>... x, typename Boxed<Option>::type... o,
                                            std::optional<ScalarType> dtype) {
    auto [f, reduction] = parse(o...);
    return Kernel::forward(f, Inputs{x...}, reduction, dtype);
  }
  static std::tuple<Tensor, Tensor> forward_with_mask(TensorArg<F, K>... x, typename Boxed<Option>::type... o,
                                                      std::optional<ScalarType> dtype, std::vector<bool> mask) {
    auto [f, reduction] = parse(o...);
    return Kernel::forward(f, Inputs{x...}, reduction, dtype, mask);
  }
  static std::vector<Tensor> grad(Tensor grad_output, TensorArg<F, K>... x, typename Boxed<Option>::type... o,
                                  std::vector<bool> output_mask) {
    auto [f, reduction] = parse(o...);
    return Kernel::grad(f, grad_output, Inputs{x...}, reduction, output_mask);
  }
  static std::vector<Tensor> grad_with_state(Tensor grad_output, Tensor state, TensorArg<F, K>... x,
                                             typename Boxed<Option>::type... o, std::vector<bool> output_mask) {
    auto [f, reduction] = parse(o...);
    return Kernel::grad(f, grad_output, state, Inputs{x...}, reduction, output_mask);
  }
};
template <class Kernel, class F>
using EntryOf = Entry<Kernel, F, std::make_index_sequence<F::inputs>, decltype(&F::make)>;

// The skeleton of each list of formula.h.
template <class List>
struct SkeletonOf;
template <class... F>
struct SkeletonOf<PointwiseOps<F...>> {
  template <class Formula, class Backend>
  using Kernel = PointwiseKernel<Formula, Backend>;
};
template <class... F>
struct SkeletonOf<RowOps<F...>> {
  template <class Formula, class Backend>
  using Kernel = RowKernel<Formula, Backend>;
};
template <class... F>
struct SkeletonOf<GroupOps<F...>> {
  template <class Formula, class Backend>
  using Kernel = GroupKernel<Formula, Backend>;
};
template <class... F>
struct SkeletonOf<WrittenOps<F...>> {
  template <class Formula, class Backend>
  using Kernel = WrittenKernel<Formula, Backend>;
};

template <class F, class Library>
void define(Library& m, bool loss, bool keeps_state) {
  std::string name = F::name, args = F::args, separator = args.find("*, ") == std::string::npos ? ", *, " : ", ";
  std::string mask = separator + "bool[" + std::to_string(F::gradients) + "] output_mask";
  std::string dtype = loss ? separator + "ScalarType? dtype=None" : "";
  m.def((name + "(" + args + dtype + ") -> Tensor").c_str());
  if (keeps_state) {
    std::string forward_mask = takes_forward_mask<F>::value ? (loss ? mask.substr(4) : mask) : "";
    m.def((name + "_forward(" + args + dtype + forward_mask + ") -> (Tensor, Tensor)").c_str());
  }
  std::string state = keeps_state ? "Tensor state, " : "";
  m.def((name + "_backward(Tensor grad_output, " + state + args + mask + ") -> Tensor[]").c_str());
}

template <class Library, template <class...> class List, class... F>
void define(Library& m, List<F...>) {
  using S = SkeletonOf<List<F...>>;
  (define<F>(m, EntryOf<void, F>::is_loss, S::template Kernel<F, void>::keeps_state), ...);
}
template <class Library, class... Lists>
void define(Library& m, Family<Lists...>) {
  (define(m, Lists{}), ...);
}

template <class Kernel, class F, class Library>
void implement(Library& m) {
  using E = EntryOf<Kernel, F>;
  std::string name = F::name;
  if constexpr (E::is_loss) m.impl(F::name, TORCH_BOX(&E::loss));
  else m.impl(F::name, TORCH_BOX(&E::activation));
  if constexpr (Kernel::keeps_state) {
    if constexpr (takes_forward_mask<F>::value) m.impl((name + "_forward").c_str(), TORCH_BOX(&E::forward_with_mask));
    else m.impl((name + "_forward").c_str(), TORCH_BOX(&E::forward));
    m.impl((name + "_backward").c_str(), TORCH_BOX(&E::grad_with_state));
  } else {
    m.impl((name + "_backward").c_str(), TORCH_BOX(&E::grad));
  }
}
template <class Backend, class Library, template <class...> class List, class... F>
void implement(Library& m, List<F...>) {
  using S = SkeletonOf<List<F...>>;
  (implement<typename S::template Kernel<F, Backend>, F>(m), ...);
}
template <class Backend, class Library, class... Lists>
void implement(Library& m, Family<Lists...>) {
  (implement<Backend>(m, Lists{}), ...);
}

}  // namespace lossreg
