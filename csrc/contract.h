#pragma once
// What is asked of every formula, whatever its skeleton, while it is compiled: a mistake that the dispatcher would only
// notice in a call, or not at all, is an error here, in the words of the one who made it.
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/schema.h"
#include "skeletons/formula.h"

namespace lossreg::detail {

// "lossreg::HuberLoss", as the compiler writes it.
template <class F>
constexpr std::string_view written_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  size_t begin = text.find("F = ") + 4;
  return text.substr(begin, text.find_first_of(";]", begin) - begin);
}

// May an option of this type and name in the schema arrive as an argument of make() of the type Option?
template <class Option>
constexpr bool option_fits(SchemaArgument schema) {
  std::string_view type = schema.type.substr(0, schema.type.find('['));
  bool list = type.size() != schema.type.size();
  if constexpr (std::is_same_v<Option, Reduction>) return type == "str" && !list && schema.name == "reduction";
  else if (schema.name == "reduction") return false;
  else if constexpr (std::is_same_v<Option, std::string>) return type == "str" && !list;
  else if constexpr (std::is_same_v<Option, double>) return type == "float" && !list;
  else if constexpr (std::is_same_v<Option, int64_t>) return (type == "int" || type == "SymInt") && !list;
  else if constexpr (std::is_same_v<Option, bool>) return type == "bool" && !list;
  else if constexpr (std::is_same_v<Option, std::vector<int64_t>>) return (type == "int" || type == "SymInt") && list;
  else if constexpr (std::is_same_v<Option, std::vector<double>>) return type == "float" && list;
  else if constexpr (std::is_same_v<Option, std::optional<double>>) return type == "float?";
  else if constexpr (std::is_same_v<Option, std::optional<int64_t>>) return type == "int?" || type == "SymInt?";
  else if constexpr (std::is_same_v<Option, std::optional<bool>>) return type == "bool?";
  else return false;
}

template <class F, class Make>
struct Options;
template <class F, class... Option>
struct Options<F, F (*)(Option...)> {
  static constexpr bool as_many = Schema(F::args).options() == int(sizeof...(Option));
  template <std::size_t... K>
  static constexpr bool fit(std::index_sequence<K...>) {
    return (option_fits<std::decay_t<Option>>(Schema(F::args).option(int(K))) && ...);
  }
  static constexpr bool in_order = fit(std::index_sequence_for<Option...>{});
  static constexpr bool reduction = (std::is_same_v<std::decay_t<Option>, Reduction> || ...);
};

template <class F, bool Reduces, bool Written>
struct Contract {
  using O = Options<F, decltype(&F::make)>;
  static constexpr int tensors = Schema(F::args).size() - Schema(F::args).options();

  static_assert(written_name<F>().substr(0, 9) == "lossreg::",
                "a formula belongs into namespace lossreg: elsewhere, exp(x) could be C's own, for a double");
  static_assert(tensors == F::inputs, "args has as many tensors as inputs says");
  static_assert(F::gradients >= 1 && F::gradients <= F::inputs, "gradients are those of the leading tensors of args");
  static_assert(O::as_many,
                "make() takes every option of args, all that is no Tensor: `str reduction` as a Reduction too");
  static_assert(
      !O::as_many || O::in_order,
      "make() takes the options of args in their order: `str reduction` as Reduction, float as double, int as "
      "int64_t, bool as bool, another str as std::string, int[] as std::vector<int64_t>");
  static_assert(Written || !has<declared::results, F>, "an op with several results is one of WrittenOps");
  static_assert(result_count<F>() > 1 || !has<declared::results, F>, "results names several of them");
  static_assert(!Reduces || O::reduction, "a loss of rows, groups or boxes is reduced: make() takes a Reduction");
  static constexpr bool holds = true;
};

template <class... F>
constexpr bool names_differ() {
  std::string_view names[] = {"", F::name...};
  for (size_t i = 1; i < std::size(names); i++)
    for (size_t j = 1; j < i; j++)
      if (names[i] == names[j]) return false;
  return true;
}

template <bool Reduces, bool Written, class... F>
constexpr bool check_list() {
  static_assert(names_differ<F...>(), "each op of a family has a name of its own");
  return (Contract<F, Reduces, Written>::holds && ...);
}
template <class... F>
constexpr bool check_contract(PointwiseOps<F...>) {
  return check_list<false, false, F...>();
}
template <class... F>
constexpr bool check_contract(WrittenOps<F...>) {
  return check_list<false, true, F...>();
}
template <class... F>
constexpr bool check_contract(OwnSchemaOps<F...>) {
  return true;
}
template <template <class...> class List, class... F>
constexpr bool check_contract(List<F...>) {
  return check_list<true, false, F...>();
}
template <class... Lists>
constexpr bool check_contract(Family<Lists...>) {
  return (check_contract(Lists{}) && ...);
}

}  // namespace lossreg::detail
