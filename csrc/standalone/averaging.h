#pragma once
// Moving averages of a model's tensors, in place.
#include <algorithm>
#include <map>
#include <tuple>

#include "../base/overlap.h"
#include "../skeletons/standalone.h"

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
    std::map<int32_t, OfDevice> devices;
    for (size_t i = 0; i < averages.size(); i++) {
      Iteration<3> it = step(averages[i], params[i], averages[0], i);
      if (it.numel > 0) devices[averages[i].get_device_index()].add(it, averages[i], params[i]);
    }
    expect_apart(averages, params);

    Average body{decay, 1 - decay};
    for (const auto& [index, own] : devices) {
      typename Backend::Guard guard(own.first);
      Backend::Pointwise::template map_many<float, 2, 1>(own.narrow, body);
      Backend::Pointwise::template map_many<double, 2, 1>(own.wide, body);
      if (!own.copies.empty()) call_aten<0>("aten::_foreach_copy_", "", own.copies, own.sources, false);
    }
  }

 private:
  // What there is to do on one device: averages computed in float, in double, and copies.
  struct OfDevice {
    Tensor first;
    std::vector<Iteration<3>> narrow, wide;
    std::vector<Tensor> copies, sources;

    void add(const Iteration<3>& it, const Tensor& average, const Tensor& param) {
      if (!first.defined()) first = average;
      DType dtype = it.operand[0].dtype;
      if (!is_floating(dtype)) copies.push_back(average), sources.push_back(param);
      else (dtype == DType::float64 ? wide : narrow).push_back(it);
    }
  };
  static std::string item(const char* list, size_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

  static Footprint footprint(const Tensor& t) {
    DType dtype = *known_dtype(t.scalar_type());
    return {t.const_data_ptr(), shape_of(t), strides_of(t), size_of(dtype)};
  }

  // One pair: average, parameter, and the average again as what is written.
  static Iteration<3> step(const Tensor& average, const Tensor& param, const Tensor& first, size_t i) {
    std::string a = item("averages", i), p = item("params", i);
    Shape shape = shape_of(average);
    check_same_shape(name, p, shape_of(param), a, shape);
    DType dtype = dtype_of(name, a, average, false), other = dtype_of(name, p, param, false);
    if (dtype != other) fail(name, p, " of the dtype of ", a, ", got ", name_of(dtype), " and ", name_of(other));
    expect_one_device(name, average, param);
    if (device_type(average) != device_type(first)) expect_one_device(name, first, average);
    if (!has_distinct_elements(footprint(average)))
      fail(name, a, " whose elements share no memory, got strides ",
           shape_text(Shape(average.strides().begin(), average.strides().end())));
    View of_average = view_of(average, dtype, shape);
    View views[] = {of_average, view_of(param, dtype, shape), of_average};
    return make_iteration<3>(name, shape, views);
  }

  // Nothing that a step writes may be read or written by another one: the result would hang on their order. An average
  // that is its own parameter, element for element, is none of that.
  static void expect_apart(const std::vector<Tensor>& averages, const std::vector<Tensor>& params) {
    struct Entry {
      Footprint footprint;
      const char* list;
      size_t index;
    };
    std::vector<Entry> entries;
    entries.reserve(2 * averages.size());
    for (size_t i = 0; i < averages.size(); i++)
      if (averages[i].numel()) {
        entries.push_back({footprint(averages[i]), "averages", i});
        entries.push_back({footprint(params[i]), "params", i});
      }
    // by where they begin, averages first: what starts beyond the end of one shares nothing with it
    auto before = [](const Entry& a, const Entry& b) {
      if (a.footprint.begin != b.footprint.begin) return a.footprint.begin < b.footprint.begin;
      return std::tie(a.list[0], a.index) < std::tie(b.list[0], b.index);
    };
    std::sort(entries.begin(), entries.end(), before);
    for (size_t i = 0; i < entries.size(); i++)
      for (size_t j = i + 1; j < entries.size() && entries[j].footprint.begin < entries[i].footprint.end; j++) {
        const Entry &a = entries[i], &b = entries[j];
        bool both_read = *a.list == 'p' && *b.list == 'p';
        bool one_pair = *a.list != *b.list && a.index == b.index && a.footprint.same_as(b.footprint);
        if (!both_read && !one_pair && share_memory(a.footprint, b.footprint))
          fail(name, "averages that share no memory with another tensor of the call, got ", item(a.list, a.index),
               " and ", item(b.list, b.index));
      }
  }
};

using Ops = OwnSchemaOps<EmaUpdate>;

}  // namespace lossreg
