#pragma once
// The region skeleton: losses of whole regions of pixels. A region is a sample, or the whole batch at once; each of its
// pixels has a score for every class, and a label. What is here is the host's part; cpu.h and cuda.h run
// over the pixels.
#include "../checks.h"
#include "formula.h"

namespace lossreg {

struct Regions {
  // The operands of the iteration over the pixels of one region. kFlat has no data: it numbers the pixels in the order
  // of their indices, whatever the order of memory.
  enum Role { kInput, kTarget, kGradInput, kGradTarget, kFlat, kRoles };
  Iteration<kRoles> pixels;
  int64_t count = 1, classes = 1;
  int64_t region_stride[kRoles] = {}, class_stride[kRoles] = {};
  int64_t ignore_index = 0;
  bool binary = false;  // the label 1 is class 0, all others are class 1; there are scores of class 0 only

  HD void offsets(int64_t region, int64_t pixel, int64_t (&offset)[kRoles]) const {
    pixels.offsets(pixel, offset);
    for (int k = 0; k < kRoles; k++) offset[k] += region * region_stride[k];
  }
  template <class V>
  HD int32_t label(V target) const {
    if (target == V(ignore_index)) return kIgnored;
    if (binary) return target == V(1) ? 0 : 1;
    return target >= V(0) && target < V(classes) ? int32_t(target) : kUnknown;
  }
};

// A pass over regions, each in chunks of `chunk` pixels. Sums are kept for each class (slots = classes), or weighted
// and for all of them together (slots = 1).
template <class T>
struct RegionPass {
  Regions regions;
  Power power;
  const T* weight = nullptr;  // one a class; null: 1
  int64_t slots = 1, chunk = 1, chunks = 0;

  HD int64_t all_chunks() const { return regions.count * chunks; }
  HD int64_t slot(int64_t c) const { return slots == 1 ? 0 : c; }
  HD T weight_of(int64_t c) const { return weight ? weight[c] : T(1); }
  void divide(int64_t pixels_a_chunk) {
    chunk = pixels_a_chunk;
    chunks = (regions.pixels.numel + chunk - 1) / chunk;
  }
};

// A large finite number in place of one that T does not hold: times 0 it must stay 0.
template <class T>
HD T finite(double x) {
  if constexpr (sizeof(T) == 4) return T(clamp(x, -3e38, 3e38));
  return x;
}

// The tensors of one call, checked against each other.
struct RegionCall {
  const char *op, *args;
  Tensor input, target;
  DType input_dtype, target_dtype, result;
  Shape shape, pixel_shape;
  bool scored;        // the input has a class dimension
  bool soft = false;  // the target holds a probability for each score
  std::optional<Tensor> weight;

  RegionCall(const char* op, const char* args, const Inputs& inputs, bool scored, bool takes_soft)
      : op(op),
        args(args),
        input(required(op, args, 0, inputs[0])),
        target(required(op, args, 1, inputs[1])),
        scored(scored) {
    input_dtype = dtype_of(op, "input", input, true);
    target_dtype = dtype_of(op, "target", target, false);
    expect_one_device(op, input, target);
    shape = pixel_shape = shape_of(input);
    if (int64_t(shape.size()) < 1 + scored)
      fail(op, "input of shape ", scored ? "(N, C, ...)" : "(N, ...)", ", got ", shape_text(shape));
    if (scored) {
      check_classes(op, "input", shape, shape[1]);
      pixel_shape.erase(pixel_shape.begin() + 1);
    }
    element_count(op, shape);
    check_target(takes_soft);
    Promotion promotion;
    promotion.add(input_dtype, input.dim());
    promotion.add(target_dtype, target.dim());
    if (inputs.size() > 2 && inputs[2]) {
      weight = inputs[2];
      promotion.add(check_class_weight(op, "weight", *weight, classes(), input), weight->dim());
    }
    result = promotion.result();
  }

  int64_t samples() const { return shape[0]; }
  int64_t classes() const { return scored ? shape[1] : 1; }

  void check_target(bool takes_soft) {
    Shape own = shape_of(target);
    soft = takes_soft && is_floating(target_dtype);
    if (soft || !scored) return check_same_shape(op, "target", own, "input", shape);
    check_class_indices(op, "target", target_dtype);
    check_shape(op, "target", own, pixel_shape, "input", shape);
  }

  // Regions of a sample each, or the batch as one.
  Regions regions(bool batch, int64_t ignore_index, const Tensor* grad_input = nullptr,
                  const Tensor* grad_target = nullptr) const {
    Regions r;
    r.classes = classes();
    r.ignore_index = ignore_index;
    r.binary = !scored;
    r.count = batch ? 1 : samples();
    Shape inside(pixel_shape.begin() + !batch, pixel_shape.end());
    View views[Regions::kRoles];
    for (View& v : views) v = absent_view(inside);
    auto place = [&](Regions::Role k, const Tensor& t) {
      auto strides = t.strides();
      views[k] = {const_cast<void*>(t.const_data_ptr()), *known_dtype(t.scalar_type()), {}};
      bool has_classes = strides.size() > pixel_shape.size();
      if (has_classes) r.class_stride[k] = strides[1];
      for (size_t d = 0; d < strides.size(); d++) {
        if (d == 0 && !batch) r.region_stride[k] = strides[0];
        else if (d != 1 || !has_classes) views[k].strides.push_back(strides[d]);
      }
    };
    place(Regions::kInput, input);
    place(Regions::kTarget, target);
    if (grad_input) place(Regions::kGradInput, *grad_input);
    if (grad_target) place(Regions::kGradTarget, *grad_target);
    views[Regions::kFlat].strides = contiguous_strides(inside);
    r.pixels = make_iteration<Regions::kRoles>(op, inside, views);
    return r;
  }
};

}  // namespace lossreg
