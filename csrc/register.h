#pragma once
// From a family's list of formulas to the dispatcher: schemas, and for each op its kernel and the gradient's.
#include <memory>

#include "contract.h"
#include "registration.h"
#include "skeletons/backend.h"
#include "skeletons/checks.h"
#include "skeletons/standalone.h"

// Runs once: what a compiler would do for its speed, it leaves.
#define LOSSREG_ONCE __attribute__((cold))

namespace lossreg::detail {

// What a kernel is given, as it uses it. A string comes as a handle, which is the receiver's to free: torch's own
// conversion to std::string leaves a copy of the text behind on the heap, with nobody to free it.
template <class T>
const T& take(const T& argument) {
  return argument;
}
inline std::string take(StringHandle handle) {
  struct Free {
    void operator()(StringHandle h) const { torch_delete_string(h); }
  };
  std::unique_ptr<std::remove_pointer_t<StringHandle>, Free> owned(handle);
  size_t length = 0;
  const char* text = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
  return std::string(text, length);
}

// A dtype comes as torch's number for it, and is looked up when everything else has an owner: that may throw.
using DTypeCode = std::optional<int32_t>;
inline std::optional<ScalarType> scalar_type(const char* op, const DTypeCode& code) {
  using torch::stable::detail::from, torch::stable::detail::to;
  if (!code) return std::nullopt;
  try {
    return to<ScalarType>(from(*code));
  } catch (const std::exception&) {
    fail(op, "dtype float64, float32, bfloat16 or float16, got another");
  }
}

// How an option of make() travels through the dispatcher.
template <class Option>
struct Boxed {
  using type = Option;
  template <class F>
  static Option unbox(Option o) {
    return o;
  }
};
template <>
struct Boxed<std::string> {
  using type = StringHandle;
  template <class F>
  static std::string unbox(const std::string& text) {
    return text;
  }
};
template <>
struct Boxed<Reduction> {
  using type = StringHandle;
  template <class F>
  static Reduction unbox(const std::string& text) {
    return parse_reduction(F::name, text, has<declared::batchmean, F>);
  }
};

template <class Option>
void note_reduction(std::optional<Reduction>& found, const Option& option) {
  if constexpr (std::is_same_v<Option, Reduction>) found = option;
}

// The type in which the argument at a position of the schema comes from the dispatcher.
template <class F, class Options, std::size_t Position, class = void>
struct Argument {
  using Option = std::tuple_element_t<Schema(F::args).options_before(int(Position)), Options>;
  using type = typename Boxed<std::decay_t<Option>>::type;
};
template <class F, class Options, std::size_t Position>
struct Argument<F, Options, Position, std::enable_if_t<Schema(F::args).at(int(Position)).is_tensor()>> {
  static constexpr bool optional = Schema(F::args).at(int(Position)).is_optional();
  using type = std::conditional_t<optional, std::optional<Tensor>, Tensor>;
};

// What NAME_backward calls the gradients of the results, its first arguments.
template <class F>
std::vector<std::string> gradient_names() {
  std::vector<std::string> names;
  if constexpr (has<declared::results, F>)
    for (const char* result : F::results) names.push_back(std::string("grad_") + result);
  else names.push_back("grad_output");
  return names;
}

// The kernels of one op with the signatures of its schemas. Kernel is a skeleton's: value(f, tensors, reduction, dtype)
// and grad(f, grad_output, tensors, reduction, mask), and where state is kept forward() and the state in grad.
template <class Kernel, class F, class Positions, class Tensors, class Options, class Results, class Make>
struct Entry;
template <class Kernel, class F, std::size_t... P, std::size_t... K, std::size_t... O, std::size_t... R,
          class... Option>
struct Entry<Kernel, F, std::index_sequence<P...>, std::index_sequence<K...>, std::index_sequence<O...>,
             std::index_sequence<R...>, F (*)(Option...)> {
  // Has the option dtype. A formula without a reduction may say so of itself.
  static constexpr bool is_loss = (std::is_same_v<Option, Reduction> || ...) || has<declared::loss, F>;

  struct Call {
    F f;
    Inputs tensors;
    std::optional<Reduction> reduction;
  };
  template <std::size_t Position>
  using Argument = typename detail::Argument<F, std::tuple<Option...>, Position>::type;
  // The gradient of a result as NAME_backward gets it.
  static constexpr bool several = result_count<F>() > 1;
  template <std::size_t>
  using GradOutput = std::conditional_t<several, std::optional<Tensor>, Tensor>;

  static Call parse(const Argument<P>&... argument) {
    std::tuple<decltype(take(argument))...> all(take(argument)...);
    std::tuple<std::decay_t<Option>...> options{
        Boxed<std::decay_t<Option>>::template unbox<F>(std::get<Schema(F::args).position_of_option(int(O))>(all))...};
    std::optional<Reduction> reduction;
    std::apply([&](const auto&... o) { (note_reduction(reduction, o), ...); }, options);
    Inputs tensors{std::get<Schema(F::args).position_of_tensor(int(K))>(all)...};
    for (auto& t : tensors)
      if (t && !t->defined()) t.reset();
    return {std::apply(&F::make, options), std::move(tensors), reduction};
  }
  // NAME_backward is an op like any other, which a program may call with whatever it has. Returns the first gradient of
  // a result that is there.
  static const Tensor& check_backward(const Call& call, const std::vector<bool>& mask, Incoming<F>& incoming) {
    const Tensor* first = first_of(incoming);
    check_mask(call, mask);
    return *first;
  }
  static void check_mask(const Call& call, const std::vector<bool>& mask) {
    check_gradient_mask(F::name, mask, F::gradients);
    for (int k = 0; k < F::gradients; k++)
      if (mask[k]) required(F::name, F::args, k, call.tensors[k]);
  }
  static const Tensor* first_of(Incoming<F>& incoming) {
    if constexpr (several) {
      const Tensor* first = nullptr;
      for (auto& grad : incoming) {
        if (grad && !grad->defined()) grad.reset();
        if (grad && !first) first = &*grad;
      }
      if (first) return first;
    } else if (incoming.defined()) {
      return &incoming;
    }
    std::string names;
    for (const auto& name : gradient_names<F>()) names += (names.empty() ? "" : " or ") + name;
    fail(F::name, names, " to be a tensor, got None");
  }
  // Results, and the state, as the schema returns them.
  static auto returned(const Results<F>& results) {
    if constexpr (several) return std::apply([](const auto&... r) { return std::make_tuple(r...); }, results);
    else return results;
  }
  static auto returned(const std::tuple<Results<F>, Tensor>& with_state) {
    const auto& [results, state] = with_state;
    if constexpr (several) return std::tuple_cat(returned(results), std::make_tuple(state));
    else return with_state;
  }

  static auto activation(Argument<P>... a) {
    Call call = parse(a...);
    return returned(Kernel::value(call.f, call.tensors, call.reduction, std::optional<ScalarType>{}));
  }
  static auto loss(Argument<P>... a, DTypeCode dtype) {
    Call call = parse(a...);
    return returned(Kernel::value(call.f, call.tensors, call.reduction, scalar_type(F::name, dtype)));
  }
  static auto forward(Argument<P>... a, DTypeCode dtype) {
    Call call = parse(a...);
    return returned(Kernel::forward(call.f, call.tensors, call.reduction, scalar_type(F::name, dtype)));
  }
  static auto forward_with_mask(Argument<P>... a, DTypeCode dtype, std::vector<bool> mask) {
    Call call = parse(a...);
    check_gradient_mask(F::name, mask, F::gradients);
    return returned(Kernel::forward(call.f, call.tensors, call.reduction, scalar_type(F::name, dtype), mask));
  }
  // The gradients as the schema returns them.
  static auto returned(const Grads<F::gradients>& grads, const Tensor& grad_output) {
    auto place = [&](const std::optional<Tensor>& grad) {
      return grad ? *grad : new_empty(grad_output, {0}, dtype_of(F::name, "grad_output", grad_output, true));
    };
    if constexpr (F::gradients == 1) return place(grads[0]);
    else return std::apply([&](const auto&... grad) { return std::make_tuple(place(grad)...); }, grads);
  }
  static auto value_and_grad(Argument<P>... a, DTypeCode dtype) {
    Call call = parse(a...);
    return Kernel::value_and_grad(call.f, call.tensors, call.reduction, scalar_type(F::name, dtype));
  }
  static auto value_and_grads(Argument<P>... a, DTypeCode dtype, std::vector<bool> needs_input_grad) {
    Call call = parse(a...);
    check_mask(call, needs_input_grad);
    auto [value, grads] =
        Kernel::value_and_grad(call.f, call.tensors, call.reduction, scalar_type(F::name, dtype), needs_input_grad);
    if constexpr (F::gradients == 1) return std::make_tuple(value, returned(grads, value));
    else return std::tuple_cat(std::make_tuple(value), returned(grads, value));
  }
  static auto grad(GradOutput<R>... g, Argument<P>... a, std::vector<bool> needs_input_grad) {
    Call call = parse(a...);
    Incoming<F> incoming{g...};
    const Tensor& first = check_backward(call, needs_input_grad, incoming);
    return returned(Kernel::grad(call.f, incoming, call.tensors, call.reduction, needs_input_grad), first);
  }
  static auto grad_with_state(GradOutput<R>... g, Tensor state, Argument<P>... a, std::vector<bool> needs_input_grad) {
    Call call = parse(a...);
    Incoming<F> incoming{g...};
    const Tensor& first = check_backward(call, needs_input_grad, incoming);
    if (!state.defined()) fail(F::name, "the state of the forward pass, got None");
    return returned(Kernel::grad(call.f, incoming, state, call.tensors, call.reduction, needs_input_grad), first);
  }
};
template <class Make>
struct CountOptions;
template <class F, class... Option>
struct CountOptions<F (*)(Option...)> : std::integral_constant<std::size_t, sizeof...(Option)> {};
template <class Kernel, class F, std::size_t Options = CountOptions<decltype(&F::make)>::value>
using EntryOf = Entry<Kernel, F, std::make_index_sequence<F::inputs + Options>, std::make_index_sequence<F::inputs>,
                      std::make_index_sequence<Options>, std::make_index_sequence<std::size_t(result_count<F>())>,
                      decltype(&F::make)>;

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
struct SkeletonOf<BoxOps<F...>> {
  template <class Formula, class Backend>
  using Kernel = BoxKernel<Formula, Backend>;
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

// Has the kernel value_and_grad()? Then NAME_with_gradient is an entry of the kernels' own namespace. Such a kernel
// finds the gradient in the first tensor; or those that a mask asks for, where it says that it takes one.
template <class Kernel>
using has_one_pass = decltype(Kernel::has_one_pass);
template <class Kernel>
using one_pass_takes_mask = decltype(Kernel::one_pass_takes_mask);
template <class Kernel>
constexpr bool in_one_pass() {
  if constexpr (has<has_one_pass, Kernel>) return Kernel::has_one_pass;
  else return false;
}
template <class F>
std::string one_pass_name() {
  return std::string(F::name) + "_with_gradient";
}

template <class F, class Library>
LOSSREG_ONCE void define(Library& m, bool loss, bool keeps_state) {
  Registration::of_library().defining<F>();
  std::string name = F::name, args = F::args, separator = ", *, ";
  std::string mask = separator + "bool[" + std::to_string(F::gradients) + "] needs_input_grad";
  std::string dtype = loss ? separator + "ScalarType? dtype=None" : "";
  std::string results, incoming;
  for (const std::string& grad : gradient_names<F>())
    incoming += (result_count<F>() > 1 ? "Tensor? " : "Tensor ") + grad + ", ";
  if constexpr (has<declared::results, F>)
    for (const char* result : F::results) results += std::string(results.empty() ? "" : ", ") + "Tensor " + result;
  bool several = !results.empty();
  m.def((name + "(" + args + dtype + ") -> " + (several ? "(" + results + ")" : "Tensor")).c_str());
  if (keeps_state) {
    std::string forward_mask =
        has<declared::forward_mask, F> ? (loss ? ", " + mask.substr(separator.size()) : mask) : "";
    std::string kept = several ? results + ", Tensor state" : "Tensor, Tensor";
    m.def((name + "_forward(" + args + dtype + forward_mask + ") -> (" + kept + ")").c_str());
  }
  std::string state = keeps_state ? "Tensor state, " : "";
  // One Tensor for each differentiable argument, whatever the mask says: DTensor's sharding rules take the number of an
  // op's results from its schema. Where the mask says false, a tensor without elements stands in the gradient's place.
  // An undefined tensor, which ATen returns, would cost less, but AOTInductor can't write it into a package's list of
  // results, and Tensor?, which it can write, is refused by DTensor. The dispatcher has no tuple of one: a single
  // gradient is returned as a Tensor.
  // The mask's name is also a mark. When the gradients came as a list it was output_mask, and a program that was saved
  // then would take a wrong one of the results without a word; as it is, the dispatcher refuses its call.
  std::string returns = "Tensor";
  for (int k = 1; k < F::gradients; k++) returns += ", Tensor";
  m.def((name + "_backward(" + incoming + state + args + mask + ") -> (" + returns + ")").c_str());
}

template <class Kernel, class F, class Library>
void define_one_pass(Library& m) {
  if constexpr (in_one_pass<Kernel>()) {
    std::string mask, returns = "Tensor, Tensor";
    if constexpr (has<one_pass_takes_mask, Kernel>) {
      mask = ", bool[" + std::to_string(F::gradients) + "] needs_input_grad";
      for (int k = 1; k < F::gradients; k++) returns += ", Tensor";
    }
    m.def(
        (one_pass_name<F>() + "(" + F::args + ", *, ScalarType? dtype=None" + mask + ") -> (" + returns + ")").c_str());
  }
}
template <class Library, template <class...> class List, class... F>
void define(Library& m, List<F...>, bool kernels = false) {
  using S = SkeletonOf<List<F...>>;
  (define<F>(m, EntryOf<void, F>::is_loss, S::template Kernel<F, void>::keeps_state), ...);
  if (kernels) (define_one_pass<typename S::template Kernel<F, void>, F>(m), ...);
}
template <class Library, class... F>
void define(Library& m, OwnSchemaOps<F...>, bool = false) {
  ((Registration::of_library().defining<F>(), m.def(F::schema)), ...);
}
template <class Library, class... Lists>
void define(Library& m, Family<Lists...>, bool kernels = false) {
  (define(m, Lists{}, kernels), ...);
}

template <class Kernel, class F, class Library>
void implement_one_pass(Library& m) {
  using E = EntryOf<Kernel, F>;
  if constexpr (in_one_pass<Kernel>()) {
    if constexpr (has<one_pass_takes_mask, Kernel>) m.impl(one_pass_name<F>().c_str(), TORCH_BOX(&E::value_and_grads));
    else m.impl(one_pass_name<F>().c_str(), TORCH_BOX(&E::value_and_grad));
  }
}
template <class Kernel, class F, class Library>
void implement_op(Library& m) {
  using E = EntryOf<Kernel, F>;
  std::string name = F::name;
  if constexpr (E::is_loss) m.impl(F::name, TORCH_BOX(&E::loss));
  else m.impl(F::name, TORCH_BOX(&E::activation));
  if constexpr (Kernel::keeps_state) {
    if constexpr (has<declared::forward_mask, F>) m.impl((name + "_forward").c_str(), TORCH_BOX(&E::forward_with_mask));
    else m.impl((name + "_forward").c_str(), TORCH_BOX(&E::forward));
    m.impl((name + "_backward").c_str(), TORCH_BOX(&E::grad_with_state));
  } else {
    m.impl((name + "_backward").c_str(), TORCH_BOX(&E::grad));
  }
}
template <class Backend, class Library, template <class...> class List, class... F>
void implement_list(Library& m, List<F...>, [[maybe_unused]] bool kernels) {
  using S = SkeletonOf<List<F...>>;
  (implement_op<typename S::template Kernel<F, Backend>, F>(m), ...);
  if constexpr (Backend::one_pass)
    if (kernels) (implement_one_pass<typename S::template Kernel<F, Backend>, F>(m), ...);
}
template <class Backend, class Library, class... F>
void implement_list(Library& m, OwnSchemaOps<F...>, bool) {
  (m.impl(F::name, TORCH_BOX(&F::template run<Backend>)), ...);
}
template <class Backend, class Library, class... Lists>
void implement_list(Library& m, Family<Lists...>, bool kernels) {
  (implement_list<Backend>(m, Lists{}, kernels), ...);
}

template <class Backend, class Library, class Ops>
void implement(Library& m, Ops ops, bool kernels = false) {
  if constexpr (is_whole<Backend>()) implement_list<Backend>(m, ops, kernels);
}

// What lossreg.cpp and lossreg.cu do with a family: everything twice, as torch.ops.NAMESPACE, and as
// torch.ops.NAMESPACE_kernels, to which Python attaches nothing. That is what Inductor's code calls, autograd and
// autocast being done by then: a thread that runs a deployed package never waits for Python's interpreter there.
#define LOSSREG_KERNELS_NAMESPACE C10_CONCATENATE(LOSSREG_NAMESPACE, _kernels)

template <class Ops>
bool enter_schemas(const char* family) {
  auto add = [&](const char* name_space, bool listed, auto define_all) {
    Registration::of_library().add(
        {StableLibrary::Kind::FRAGMENT, name_space, nullptr, base_name(family), listed, define_all});
  };
  add(C10_STRINGIZE(LOSSREG_NAMESPACE), true, [](StableLibrary& m) { define(m, Ops{}, false); });
  add(C10_STRINGIZE(LOSSREG_KERNELS_NAMESPACE), false, [](StableLibrary& m) { define(m, Ops{}, true); });
  return true;
}
template <class Backend, class Ops>
bool enter_kernels(const char* key, const char* family) {
  auto add = [&](const char* name_space, auto implement_all) {
    Registration::of_library().add(
        {StableLibrary::Kind::IMPL, name_space, key, base_name(family), false, implement_all});
  };
  add(C10_STRINGIZE(LOSSREG_NAMESPACE), [](StableLibrary& m) { implement<Backend>(m, Ops{}, false); });
  add(C10_STRINGIZE(LOSSREG_KERNELS_NAMESPACE), [](StableLibrary& m) { implement<Backend>(m, Ops{}, true); });
  return true;
}

}  // namespace lossreg::detail
