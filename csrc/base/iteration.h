#pragma once
// One index space over several strided operands, of any dtype each. What TensorIterator is to ATen, on one screen:
// broadcast operands have stride 0, dimensions are put in the order of memory and merged where every operand allows.
#include <algorithm>

#include "check.h"

namespace lossreg {

// A backward pass often reads what a forward pass has just read.
enum class Sweep { forward, backward };

constexpr int kMaxDims = 12;  // after merging; a real tensor needs two or three

struct Operand {
  void* data = nullptr;  // null: the constant 1, which an absent optional operand reads as
  DType dtype = DType::float32;
  bool flat = false;     // element i of the index space is element i of the memory
  bool uniform = false;  // one element for the whole index space
  int64_t stride[kMaxDims] = {};
};

// One element, of any dtype. Slow where dtypes could be known beforehand: the skeletons' loops have faster ways.
template <class T>
HD T get(const Operand& o, int64_t offset) {
  T value = T(1);
  if (o.data)
    with_storage(o.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      value = widen<T>(static_cast<const S*>(o.data)[offset]);
    });
  return value;
}
template <class T>
HD void put(const Operand& o, int64_t offset, T value) {
  with_floating_storage(o.dtype, [&](auto* tag) {
    using S = std::remove_pointer_t<decltype(tag)>;
    static_cast<S*>(o.data)[offset] = Narrow<S>::from(value);
  });
}

// Division of numbers below 2^31 by one that is known beforehand: a product and a shift, where a GPU has no instruction
// to divide integers. (Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994.)
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(uint32_t divisor) {
    while ((uint64_t(1) << shift_) < divisor) shift_++;
    multiplier_ = uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift_) - divisor)) / divisor + 1);
  }
  HD uint32_t quotient(uint32_t n) const { return (uint32_t((uint64_t(n) * multiplier_) >> 32) + n) >> shift_; }

 private:
  uint32_t multiplier_ = 1, shift_ = 0;
};
// Of any numbers. A call, because it is rare and as long as everything around it.
HD_NOINLINE int64_t quotient(int64_t n, int64_t divisor) {
  return n / divisor;
}

// Dimension 0 is the innermost.
template <int N>
struct Iteration {
  int dims = 0;
  int64_t size[kMaxDims] = {};
  Divisor by_size[kMaxDims];  // where numel is below 2^31
  int64_t numel = 1;
  Operand operand[N];

  // Offsets of element `index`, one an operand.
  HD void offsets(int64_t index, int64_t (&offset)[N]) const {
    for (int k = 0; k < N; k++) offset[k] = 0;
    if (dims > 1) {
      // all but the outermost dimension take a remainder
      LOSSREG_UNROLL_BY(1)
      for (int d = 0; d + 1 < dims; d++) {
        int64_t rest = quotient_by_size(index, d);
        add(index - rest * size[d], d, offset);
        index = rest;
      }
      add(index, dims - 1, offset);
    } else {
      add(index, 0, offset);
    }
  }

  // Those of M elements in operand k alone, in the place of their indices.
  template <int M>
  HD void to_offsets(int k, int64_t (&index)[M]) const {
    if (!is_small()) {
      for (int m = 0; m < M; m++) index[m] = far_offset(index[m], k);
      return;
    }
    uint32_t at[M];
    for (int m = 0; m < M; m++) at[m] = uint32_t(index[m]), index[m] = 0;
    LOSSREG_UNROLL_BY(1)  // a loop in a loop: a GPU's compiler would write out all of it
    for (int d = 0; d < dims; d++) {
      const uint32_t n = uint32_t(size[d]);
      for (int m = 0; m < M; m++) {
        uint32_t rest = d + 1 < dims ? by_size[d].quotient(at[m]) : 0;
        index[m] += int64_t(at[m] - rest * n) * operand[k].stride[d];
        at[m] = rest;
      }
    }
  }
  // The same beyond 31 bits. A call, because it is rare.
  HD_NOINLINE int64_t far_offset(int64_t index, int k) const {
    int64_t offset = 0;
    LOSSREG_UNROLL_BY(1)
    for (int d = 0; d < dims; d++) {
      int64_t rest = d + 1 < dims ? index / size[d] : 0;
      offset += (index - rest * size[d]) * operand[k].stride[d];
      index = rest;
    }
    return offset;
  }

  // Every index fits 31 bits.
  HD bool is_small() const { return numel <= INT32_MAX; }

 private:
  HD int64_t quotient_by_size(int64_t index, int d) const {
    return is_small() ? by_size[d].quotient(uint32_t(index)) : quotient(index, size[d]);
  }
  HD void add(int64_t steps, int d, int64_t (&offset)[N]) const {
    for (int k = 0; k < N; k++) offset[k] += steps * operand[k].stride[d];
  }
};

// What the host knows of an operand: strides over the whole index space, outermost first, as torch has them.
struct View {
  void* data;
  DType dtype;
  std::vector<int64_t> strides;
};

template <int N>
Iteration<N> make_iteration(const char* op, const std::vector<int64_t>& shape, const View* views) {
  std::vector<int> order;  // innermost first
  for (int d = int(shape.size()) - 1; d >= 0; d--)
    if (shape[d] != 1) order.push_back(d);
  // The first operand whose strides differ decides; broadcast dimensions have no opinion.
  auto inner = [&](int a, int b) {
    for (int k = 0; k < N; k++) {
      int64_t sa = views[k].strides[a], sb = views[k].strides[b];
      if (views[k].data && sa != 0 && sb != 0 && sa != sb) return sa < sb;
    }
    return false;
  };
  // Insertion sort: the order is not transitive where operands disagree, which std::sort does not forgive.
  for (size_t i = 1; i < order.size(); i++)
    for (size_t j = i; j > 0 && inner(order[j], order[j - 1]); j--) std::swap(order[j], order[j - 1]);

  Iteration<N> it;
  it.numel = element_count(op, shape);
  for (int d : order) {
    bool merge = it.dims > 0;
    for (int k = 0; k < N; k++)
      merge = merge && views[k].strides[d] == it.operand[k].stride[it.dims - 1] * it.size[it.dims - 1];
    if (merge) {
      it.size[it.dims - 1] *= shape[d];
      continue;
    }
    if (it.dims == kMaxDims) fail(op, "strides that merge to at most ", kMaxDims, " dimensions, got more");
    it.size[it.dims] = shape[d];
    for (int k = 0; k < N; k++) it.operand[k].stride[it.dims] = views[k].strides[d];
    it.dims++;
  }
  for (int d = 0; d < it.dims && it.numel > 0 && it.is_small(); d++) it.by_size[d] = Divisor(uint32_t(it.size[d]));
  for (int k = 0; k < N; k++) {
    Operand& o = it.operand[k];
    o.data = views[k].data;
    o.dtype = views[k].dtype;
    int64_t step = 1;
    o.flat = o.data != nullptr;
    o.uniform = true;
    for (int d = 0; d < it.dims; d++) {
      o.flat = o.flat && o.stride[d] == step;
      o.uniform = o.uniform && o.stride[d] == 0;
      step *= it.size[d];
    }
  }
  return it;
}

}  // namespace lossreg
