#pragma once
// Moving averages of a model's tensors, in place.
#include <algorithm>
#include <numeric>

#include "../written.h"

namespace lossreg {

// avg <- decay avg + (1 - decay) param; what can't be averaged, integers and bool, is copied.
struct EmaUpdate {
  static constexpr auto name = "ema_update_";
  static constexpr auto schema = "ema_update_(Tensor(a!)[] averages, Tensor[] params, float decay) -> ()";

  struct Average {
    double decay, rest;
    template <class T>
    HD void operator()(const T (&x)[2], T (&y)[1]) const {
      y[0] = T(decay) * x[0] + T(rest) * x[1];
    }
  };

  template <class Backend>
  static void run(std::vector<Tensor> averages, std::vector<Tensor> params, double decay) {
    // everything is checked before anything is written
    expect(decay >= 0 && decay <= 1, name, "decay in [0, 1]", decay);
    if (averages.size() != params.size())
      fail(name, "as many averages as params, got ", averages.size(), " and ", params.size());
    std::vector<Iteration<3>> steps;
    for (size_t i = 0; i < averages.size(); i++) steps.push_back(step(averages[i], params[i], averages[0], i));
    expect_apart(averages);

    Average body{decay, 1 - decay};
    for (size_t i = 0; i < averages.size(); i++) {
      if (steps[i].numel == 0) continue;
      typename Backend::Guard guard(averages[i]);
      DType dtype = steps[i].operand[0].dtype;
      if (!is_floating(dtype)) torch::stable::copy_(averages[i], params[i]);
      else
        in_compute_type(dtype, dtype, [&](auto zero) { Backend::template map<decltype(zero), 2, 1>(steps[i], body); });
    }
  }

 private:
  static std::string item(const char* list, size_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

  // One pair: average, parameter, and the average again as what is written.
  static Iteration<3> step(const Tensor& average, const Tensor& param, const Tensor& first, size_t i) {
    std::string a = item("averages", i), p = item("params", i);
    Shape shape = shape_of(average);
    if (shape != shape_of(param))
      fail(name, p, " of the shape of ", a, ", got ", shape_text(shape), " and ", shape_text(shape_of(param)));
    DType dtype = dtype_of(name, a, average, false), other = dtype_of(name, p, param, false);
    if (dtype != other) fail(name, p, " of the dtype of ", a, ", got ", name_of(dtype), " and ", name_of(other));
    expect_one_device(name, average, param);
    if (average.is_cuda() != first.is_cuda()) expect_one_device(name, first, average);
    if (!has_distinct_elements(average))
      fail(name, a, " whose elements share no memory, got strides ",
           shape_text(Shape(average.strides().begin(), average.strides().end())));
    View of_average = view_of(average, dtype, shape);
    View views[] = {of_average, view_of(param, dtype, shape), of_average};
    return make_iteration<3>(name, shape, views);
  }

  // Each dimension steps over all that the smaller ones reach.
  static bool has_distinct_elements(const Tensor& t) {
    std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
    for (int64_t d = 0; d < t.dim(); d++)
      if (t.size(d) != 1) dims.push_back({t.strides()[d], t.size(d)});
    std::sort(dims.begin(), dims.end());
    int64_t reach = 0;
    for (auto [stride, size] : dims) {
      if (size > 0 && stride <= reach) return false;
      reach += (size - 1) * stride;
    }
    return true;
  }
  // No average comes twice: it would be averaged twice.
  static void expect_apart(const std::vector<Tensor>& averages) {
    std::vector<size_t> order(averages.size());
    std::iota(order.begin(), order.end(), size_t(0));
    auto at = [&](size_t i) { return averages[i].numel() ? averages[i].const_data_ptr() : nullptr; };
    std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return std::less<>()(at(i), at(j)); });
    for (size_t k = 1; k < order.size(); k++)
      if (at(order[k]) && at(order[k]) == at(order[k - 1]))
        fail(name, "averages that share no memory, got ", item("averages", order[k - 1]), " and ",
             item("averages", order[k]));
  }
};

using Ops = OwnSchemaOps<EmaUpdate>;

}  // namespace lossreg
