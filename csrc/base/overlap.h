#pragma once
// Do two strided tensors, or two elements of one, share memory? Decided for the elements and not for the ranges from
// the first to the last: the columns of a matrix lie between each other, and apart.
#include <algorithm>
#include <cstdint>
#include <vector>

namespace lossreg {

// What a tensor of at least one element takes of memory, in bytes.
struct Footprint {
  struct Step {
    int64_t stride, count;  // so many times, beyond the first element; both > 0
  };
  uintptr_t begin = 0, end = 0;  // of the whole range
  int64_t element = 0;
  std::vector<Step> steps;  // the longest stride first
  bool repeats = false;     // a stride of 0: an expanded tensor

  Footprint(const void* data, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int64_t size)
      : begin(reinterpret_cast<uintptr_t>(data)), end(begin + uintptr_t(size)), element(size) {
    for (size_t d = 0; d < shape.size(); d++) {
      if (shape[d] <= 1) continue;
      if (strides[d] == 0) {
        repeats = true;
        continue;
      }
      steps.push_back({strides[d] * size, shape[d] - 1});
      end += uintptr_t(strides[d] * size * (shape[d] - 1));
    }
    std::sort(steps.begin(), steps.end(), [](Step a, Step b) { return a.stride > b.stride; });
    // dimensions that are one run in memory, as all of a contiguous tensor
    size_t merged = 0;
    for (size_t k = 1; k < steps.size(); k++) {
      Step &outer = steps[merged], inner = steps[k];
      if (outer.stride == inner.stride * (inner.count + 1))
        outer = {inner.stride, outer.count * (inner.count + 1) + inner.count};
      else steps[++merged] = inner;
    }
    if (!steps.empty()) steps.resize(merged + 1);
  }
  bool same_as(const Footprint& other) const {
    auto same_step = [](Step a, Step b) { return a.stride == b.stride && a.count == b.count; };
    return begin == other.begin && element == other.element && steps.size() == other.steps.size() &&
           std::equal(steps.begin(), steps.end(), other.steps.begin(), same_step);
  }
};

namespace overlap {

// Is there a sum of strides, each at most count times, in [low, high]? The strides descend; reach: the sum of all from
// the k-th on. Strides that nest, each longer than all smaller ones together, leave one or two counts to try for each.
// Whoever finds others has so many tries, and then the answer is yes.
class Search {
 public:
  explicit Search(std::vector<Footprint::Step> steps) : steps_(std::move(steps)), reach_(steps_.size() + 1) {
    std::sort(steps_.begin(), steps_.end(), [](auto a, auto b) { return a.stride > b.stride; });
    for (size_t k = steps_.size(); k-- > 0;) reach_[k] = reach_[k + 1] + steps_[k].stride * steps_[k].count;
  }
  bool finds(int64_t low, int64_t high, size_t k = 0) {
    if (high < 0 || low > reach_[k]) return false;
    if (k == steps_.size() || --tries_ < 0) return true;
    auto [stride, count] = steps_[k];
    // what remains must be within reach of the shorter strides
    int64_t least = std::max<int64_t>(0, low - reach_[k + 1] + stride - 1) / stride;
    for (int64_t n = std::min(count, high / stride); n >= least; n--)
      if (finds(low - n * stride, high - n * stride, k + 1)) return true;
    return false;
  }

 private:
  std::vector<Footprint::Step> steps_;
  std::vector<int64_t> reach_;
  int64_t tries_ = 10000;
};

}  // namespace overlap

inline bool share_memory(const Footprint& a, const Footprint& b) {
  if (a.end <= b.begin || b.end <= a.begin) return false;
  // a's first element and steps forward meet b's last one and steps back
  std::vector<Footprint::Step> steps = a.steps;
  for (auto step : b.steps) {
    auto same = std::find_if(steps.begin(), steps.end(), [&](auto s) { return s.stride == step.stride; });
    if (same == steps.end()) steps.push_back(step);
    else same->count += step.count;
  }
  // of b's last element to the first of a; elements meet that begin less than their length apart
  int64_t distance = int64_t(b.end - uintptr_t(b.element) - a.begin);
  return overlap::Search(std::move(steps)).finds(distance - (a.element - 1), distance + (b.element - 1));
}

// Is every element of the tensor in a place of its own?
inline bool has_distinct_elements(const Footprint& t) {
  if (t.repeats) return false;
  int64_t reach = 0;
  bool nested = true;
  for (size_t k = t.steps.size(); k-- > 0;) {
    nested = nested && t.steps[k].stride > reach;
    reach += t.steps[k].stride * t.steps[k].count;
  }
  if (nested) return true;
  // Two elements whose indices first differ in dimension k: it takes its stride at least once, and the others, which
  // may go either way, have to bring it back.
  for (size_t k = 0; k < t.steps.size(); k++) {
    std::vector<Footprint::Step> steps(t.steps.begin() + k, t.steps.end());
    int64_t back = steps[0].stride;
    steps[0].count--;
    for (size_t d = 1; d < steps.size(); d++) back -= steps[d].stride * steps[d].count, steps[d].count *= 2;
    if (overlap::Search(std::move(steps)).finds(-back - (t.element - 1), -back + (t.element - 1))) return false;
  }
  return true;
}

}  // namespace lossreg
