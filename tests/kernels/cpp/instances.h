#pragma once
// Instances of a formula, made without knowing it: F::make's own signature says which options there are.
#include <algorithm>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/schema.h"
#include "skeletons/formula.h"

namespace lossreg {

// The options of an instance by name, for messages and for the exceptions in kinks.h.
struct Options {
  std::vector<std::string> names;
  std::vector<double> values;

  double operator[](const std::string& name) const {
    for (size_t i = 0; i < names.size(); i++)
      if (names[i] == name) return values[i];
    throw std::logic_error("no option " + name);
  }
  std::string text() const {
    std::ostringstream out;
    for (size_t i = 0; i < names.size(); i++) out << (i ? ", " : "") << names[i] << "=" << values[i];
    return out.str();
  }
};

inline std::vector<std::string> option_names(Schema schema) {
  std::vector<std::string> names;
  for (int k = 0; k < schema.options(); k++) names.emplace_back(schema.option(k).name);
  return names;
}

// Outside and inside of what the options allow, with the values that choose a path of their own. make() refuses the
// rest.
inline std::vector<double> choices(double) {
  return {-1, 0, 0.25, 0.5, 1, 2, 3, 3.7, 4};
}
inline std::vector<int64_t> choices(int64_t) {
  return {1, 2};
}
inline std::vector<bool> choices(bool) {
  return {false, true};
}
inline std::vector<std::string> choices(const std::string&) {
  return {"none", "tanh"};
}
inline std::vector<Reduction> choices(Reduction) {
  return {Reduction::mean};
}

// An option as a number: of a word, its place among the choices.
template <class Option>
double number_of(const Option& option) {
  if constexpr (std::is_same_v<Option, std::string>) {
    auto words = choices(option);
    return double(std::find(words.begin(), words.end(), option) - words.begin());
  } else {
    return double(option);
  }
}
template <class F, class... O>
Options describe(const std::tuple<O...>& options) {
  return std::apply([](const O&... o) { return Options{option_names(Schema(F::args)), {number_of(o)...}}; }, options);
}

// Calls use(instance, options) for each combination of choices that make() accepts.
template <class F, size_t K = 0, class... O, class Use>
void each_instance(F (*make)(O...), std::tuple<std::decay_t<O>...>& options, Use use) {
  if constexpr (K < sizeof...(O)) {
    for (auto choice : choices(std::get<K>(options))) {
      std::get<K>(options) = choice;
      each_instance<F, K + 1>(make, options, use);
    }
  } else {
    try {
      std::apply(make, options);
    } catch (const std::runtime_error&) {
      return;
    }
    use(std::apply(make, options), describe<F>(options));
  }
}
template <class F, class... O, class Use>
void each_instance(F (*make)(O...), Use use) {
  std::tuple<std::decay_t<O>...> options;
  each_instance<F>(make, options, use);
}

// The instance with these options, in make's order; the reduction, which no formula keeps, is not among them.
template <class F, class... O>
std::pair<F, Options> instance(F (*make)(O...), const std::vector<double>& values) {
  size_t at = 0;
  [[maybe_unused]] auto next = [&](auto zero) {
    using Option = decltype(zero);
    if constexpr (std::is_same_v<Option, Reduction>) return Reduction::mean;
    else if constexpr (std::is_same_v<Option, std::string>) return choices(zero).at(size_t(values.at(at++)));
    else return Option(values.at(at++));
  };
  // braces, so that the order of evaluation is the order of writing
  std::tuple<std::decay_t<O>...> options{next(std::decay_t<O>{})...};
  if (at != values.size()) throw std::logic_error(std::string(F::name) + ": too many options in the table");
  return {std::apply(make, options), describe<F>(options)};
}

}  // namespace lossreg
