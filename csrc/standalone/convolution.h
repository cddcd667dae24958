#pragma once
// Convolutions with a twist: torch's own convolution does the work, and what is added is done once and not per sample.
#include <array>

#include "../skeletons/standalone.h"

namespace lossreg {

namespace convolution {

struct Options {
  Shape stride, padding, dilation;
  int64_t groups;
};
// Beyond this an option is a mistake, and sums of it with a size could overflow.
constexpr int64_t kMostOption = INT32_MAX;
// One number, for both directions, or two.
inline Shape both(const char* op, const char* option, int64_t least, const Shape& got) {
  if (got.size() != 1 && got.size() != 2) fail(op, option, " of one number or two, got ", shape_text(got));
  if (std::min(got.front(), got.back()) < least) fail(op, option, " of at least ", least, ", got ", shape_text(got));
  if (std::max(got.front(), got.back()) > kMostOption)
    fail(op, option, " of at most ", kMostOption, ", got ", shape_text(got));
  return {got.front(), got.back()};
}
inline Options parse(const char* op, const Shape& stride, const Shape& padding, const Shape& dilation, int64_t groups) {
  expect(groups >= 1, op, "groups of at least 1", groups);
  return {both(op, "stride", 1, stride), both(op, "padding", 0, padding), both(op, "dilation", 1, dilation), groups};
}

inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  int64_t step = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.strides()[d] != step) return false;
    step *= t.size(d);
  }
  return true;
}
// Laid out as the input where that has the shape; else channels last where the input is, else contiguous.
inline Tensor new_result(const Tensor& input, const Shape& shape) {
  DType dtype = *known_dtype(input.scalar_type());
  if (shape_of(input) == shape) return empty_like(input, dtype);
  if (!is_channels_last(input)) return new_empty(input, shape, dtype);
  Tensor t = new_empty(input, {shape[0], shape[2], shape[3], shape[1]}, dtype);
  return call_aten("aten::permute", "", t, Shape{0, 3, 1, 2})[0];
}

inline Tensor batched(const Tensor& t, int64_t dims) {
  return t.dim() < dims ? torch::stable::unsqueeze(t, 0) : t;
}
inline Tensor convolve(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Options& o,
                       int64_t groups) {
  return call_aten("aten::convolution", "", input, weight, bias, o.stride, o.padding, o.dilation, false, Shape{0, 0},
                   groups)[0];
}
// The gradients in input, weight and bias, those that are asked for.
inline std::array<Tensor, 3> convolve_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                               const Options& o, int64_t groups, const std::array<bool, 3>& mask) {
  Shape bias = {weight.size(0)};
  return call_aten<3>("aten::convolution_backward", "", grad_output, input, weight, std::optional(bias), o.stride,
                      o.padding, o.dilation, false, Shape{0, 0}, groups,
                      torch::headeronly::HeaderOnlyArrayRef<bool>(mask.data(), mask.size()));
}

inline Tensor sum_over(const Tensor& t, const Shape& dims, DType dtype) {
  return call_aten("aten::sum", "dim_IntList", t, std::optional(dims), true, std::optional(scalar_type(dtype)))[0];
}
inline Tensor channels(Tensor t, int64_t start, int64_t count) {
  return narrow(t, 1, start, count);
}
inline void copy(Tensor to, const Tensor& from) {
  torch::stable::copy_(to, from);
}

// What both ops ask of their tensors, which are named in F::args.
template <class F>
struct Checked {
  const Options& options;
  Tensor input;  // (N, I, H, W)
  DType dtype;
  Shape shape;  // of the result, as the input batched or not
  bool unbatched;

  Checked(const Options& o, const Inputs& tensors)
      : options(o), input(detached(required(F::name, F::args, 0, tensors[0]))) {
    dtype = dtype_of(F::name, name(0), input, true);
    shape = shape_of(input);
    unbatched = shape.size() == 3;
    if (!unbatched && shape.size() != 4)
      fail(F::name, "input of shape (C, H, W) or (N, C, H, W), got ", shape_text(shape));
    input = batched(input, 4);
  }
  ArgumentName name(int k) const { return {F::args, k}; }

  // A required operand, of the input's device and dtype.
  Tensor operand(const Inputs& tensors, int k) const {
    Tensor t = detached(required(F::name, F::args, k, tensors[k]));
    check_operand(F::name, name(k), t, input, dtype);
    return t;
  }

  // Checks the weight's shape, which has `dims` dimensions, for an input of so many channels, and makes `shape` that of
  // the result. `letters` names the weight's dimensions before the output channels, for messages.
  void fit(Shape weight, const std::string& letters, size_t dims, int64_t channels) {
    std::string whole = shape_text(weight);
    bool empty = std::find(weight.begin(), weight.end(), 0) != weight.end();
    if (weight.size() != dims || empty)
      fail(F::name, "weight of shape (", letters, "O, I, kh, kw), without empty dimensions, got ", whole);
    weight.erase(weight.begin(), weight.end() - 4);
    if (channels % options.groups != 0 || weight[0] % options.groups != 0)
      fail(F::name, "groups that divide ", channels, " input and ", weight[0], " output channels, got ",
           options.groups);
    if (weight[1] != channels / options.groups)
      fail(F::name, "weight of shape (", letters, "O, ", channels / options.groups, ", kh, kw) for input of shape ",
           shape_text(shape), ", got ", whole);
    size_t at = shape.size() - 3;
    Shape padded, kernel, result = {weight[0]};
    for (int d = 0; d < 2; d++) {
      if (shape[at + 1 + d] == 0) fail(F::name, "input of at least one row and one column, got ", shape_text(shape));
      if (std::max(shape[at + 1 + d], weight[2 + d]) > convolution::kMostOption)
        fail(F::name, "height and width of input and weight of at most ", convolution::kMostOption, ", got ",
             shape_text(shape), " and ", whole);
      padded.push_back(shape[at + 1 + d] + 2 * options.padding[d]);
      kernel.push_back(options.dilation[d] * (weight[2 + d] - 1) + 1);
      result.push_back((padded[d] - kernel[d]) / options.stride[d] + 1);
    }
    if (kernel[0] > padded[0] || kernel[1] > padded[1])
      fail(F::name, "a kernel that fits into the padded input, ", shape_text(padded), ", got ", shape_text(kernel));
    std::copy(result.begin(), result.end(), shape.begin() + at);
    element_count(F::name, shape);
  }
  void expect_shape(const Inputs& tensors, int k, const Shape& wanted) const {
    Shape got = shape_of(*tensors[k]);
    if (got != wanted) fail(F::name, name(k), " of shape ", shape_text(wanted), ", got ", shape_text(got));
  }

  Tensor new_result() const { return convolution::new_result(unbatched ? like_unbatched() : input, shape); }
  Tensor like_unbatched() const { return torch::stable::squeeze(input, 0); }
  Tensor checked_grad(const Tensor& grad_output) const {
    check_grad_output(F::name, grad_output, shape, input);
    return torch::stable::to(batched(detached(grad_output), 4), scalar_type(dtype));
  }
};

// Row and column of each element, both from -1 to 1: (1, 2, H, W).
struct Coordinates {
  Operand out;
  int64_t height, width;
  HD void operator()(int64_t i) const {
    int64_t plane = height * width, k = i / plane, row = i % plane / width, column = i % width;
    int64_t at = k == 0 ? row : column, last = (k == 0 ? height : width) - 1;
    put(out, i, double(2 * at) / double(last > 0 ? last : 1) - 1.0);
  }
};
template <class Backend>
Tensor coordinates(const Tensor& input, DType dtype) {
  int64_t height = input.size(2), width = input.size(3);
  Tensor t = new_empty(input, {1, 2, height, width}, dtype);
  Backend::each(2 * height * width, 8, Coordinates{operand_of(t), height, width});
  return t;
}

}  // namespace convolution

// A convolution is linear in its input, so that of the coordinates may be apart from that of the samples. It is the
// same for all samples, and is computed once.
struct CoordConv2d {
  static constexpr auto name = "coord_conv2d";
  static constexpr auto args =
      "Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, "
      "int groups=1";
  static constexpr int inputs = 3, gradients = 3;
  static constexpr bool keeps_state = false;
  static constexpr int64_t kFewElements = 1 << 14;
  convolution::Options options;

  static CoordConv2d make(Shape stride, Shape padding, Shape dilation, int64_t groups) {
    return {convolution::parse(name, stride, padding, dilation, groups)};
  }

  struct Call : convolution::Checked<CoordConv2d> {
    Tensor weight;
    std::optional<Tensor> bias;
    Call(const convolution::Options& o, const Inputs& tensors) : Checked(o, tensors), weight(operand(tensors, 1)) {
      if (tensors[2]) bias = operand(tensors, 2);
      fit(shape_of(weight), "", 4, input.size(1) + 2);
      if (bias) expect_shape(tensors, 2, {weight.size(0)});
    }
    // Coordinates and their bias are not rounded before the sum is.
    DType wide() const { return compute_dtype(dtype); }
    Tensor weight_of_coordinates() const {
      return torch::stable::to(convolution::channels(weight, 0, 2), scalar_type(wide()));
    }
    Tensor weight_of_input() const { return convolution::channels(weight, 2, input.size(1)); }
    // Groups mix coordinates and channels; for few elements one convolution is faster than two.
    bool joined(const convolution::Options& o) const {
      return o.groups > 1 || (dtype == wide() && input.numel() <= kFewElements);
    }
    template <class Backend>
    Tensor with_coordinates() const {
      using namespace convolution;
      Shape full = shape_of(input);
      full[1] += 2;
      Tensor t = new_empty(input, full, dtype);
      Shape planes = {full[0], 2, full[2], full[3]};
      copy(channels(t, 0, 2), strided(coordinates<Backend>(input, dtype), planes, {0, full[2] * full[3], full[3], 1}));
      copy(channels(t, 2, input.size(1)), input);
      return t;
    }
  };

  template <class Backend>
  Tensor value(const Inputs& tensors, std::optional<Reduction>, std::optional<ScalarType>) const {
    using namespace convolution;
    Call call(options, tensors);
    typename Backend::Guard guard(call.input);
    Tensor result = call.new_result(), rows = batched(result, 4);
    if (call.joined(options)) {
      copy(rows, convolve(call.with_coordinates<Backend>(), call.weight, call.bias, options, options.groups));
      return result;
    }
    std::optional<Tensor> bias = call.bias;
    if (bias) bias = torch::stable::to(*bias, scalar_type(call.wide()));
    Tensor places =
        convolve(coordinates<Backend>(call.input, call.wide()), call.weight_of_coordinates(), bias, options, 1);
    Tensor samples = convolve(call.input, call.weight_of_input(), std::nullopt, options, 1);
    map_tensors<Backend, Add>(name, call.dtype, {samples, places}, rows);
    return result;
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Inputs& tensors, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    using namespace convolution;
    Call call(options, tensors);
    typename Backend::Guard guard(call.input);
    Tensor grad = call.checked_grad(grad_output);
    Grads<gradients> grads;
    for (int k = 0; k < gradients; k++)
      if (mask[k]) grads[k] = empty_like(*tensors[k], call.dtype);
    auto& [in_input, in_weight, in_bias] = grads;

    int64_t planes = call.input.size(1);
    Tensor of_batch;
    if (in_weight || in_bias) of_batch = sum_over(grad, {0}, call.wide());
    if (in_bias) copy(*in_bias, torch::stable::reshape(sum_over(of_batch, {0, 2, 3}, call.wide()), shape_of(*in_bias)));
    if (!in_input && !in_weight) return grads;
    if (call.joined(options)) {
      auto g = convolve_backward(grad, call.with_coordinates<Backend>(), call.weight, options, options.groups,
                                 {mask[0], mask[1], false});
      if (in_input) copy(batched(*in_input, 4), channels(g[0], 2, planes));
      if (in_weight) copy(*in_weight, g[1]);
      return grads;
    }
    auto g = convolve_backward(grad, call.input, call.weight_of_input(), options, 1, {mask[0], mask[1], false});
    if (in_input) copy(batched(*in_input, 4), g[0]);
    if (in_weight) {
      auto places = convolve_backward(of_batch, coordinates<Backend>(call.input, call.wide()),
                                      call.weight_of_coordinates(), options, 1, {false, true, false});
      copy(channels(*in_weight, 0, 2), places[1]);
      copy(channels(*in_weight, 2, planes), g[1]);
    }
    return grads;
  }
};

// Each sample has a kernel of its own: its attention times the K kernels, a matrix product. The samples are then the
// groups of one convolution.
struct DynamicConv2d {
  static constexpr auto name = "dynamic_conv2d";
  static constexpr auto args =
      "Tensor input, Tensor attention, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
      "int[2] dilation=1, int groups=1";
  static constexpr int inputs = 4, gradients = 4;
  static constexpr bool keeps_state = false;
  convolution::Options options;

  static DynamicConv2d make(Shape stride, Shape padding, Shape dilation, int64_t groups) {
    return {convolution::parse(name, stride, padding, dilation, groups)};
  }

  struct Call : convolution::Checked<DynamicConv2d> {
    Tensor attention, weight;  // (N, K), (K, all of a kernel)
    std::optional<Tensor> bias;
    Shape kernels;  // of all samples, one after the other
    int64_t samples, groups;

    Call(const convolution::Options& o, const Inputs& tensors)
        : Checked(o, tensors), attention(operand(tensors, 1)), weight(operand(tensors, 2)) {
      if (tensors[3]) bias = operand(tensors, 3);
      samples = input.size(0);
      Shape of_weight = shape_of(weight);
      fit(of_weight, "K, ", 5, input.size(1));
      int64_t count = of_weight[0];
      expect_shape(tensors, 1, unbatched ? Shape{count} : Shape{samples, count});
      if (bias) expect_shape(tensors, 3, {count, of_weight[1]});
      groups = samples * o.groups;  // which divides the channels
      element_count(DynamicConv2d::name, {samples, of_weight[1], of_weight[2], of_weight[3], of_weight[4]});
      kernels = {samples * of_weight[1], of_weight[2], of_weight[3], of_weight[4]};
      attention = convolution::batched(attention, 2);
      weight = torch::stable::reshape(weight, {count, -1});
    }
    // The samples as channels of one.
    Tensor as_one(const Tensor& t) const {
      return torch::stable::reshape(t, {1, t.size(0) * t.size(1), t.size(2), t.size(3)});
    }
    Tensor sample_kernels() const { return torch::stable::reshape(torch::stable::matmul(attention, weight), kernels); }
  };

  template <class Backend>
  Tensor value(const Inputs& tensors, std::optional<Reduction>, std::optional<ScalarType>) const {
    using namespace convolution;
    Call call(options, tensors);
    typename Backend::Guard guard(call.input);
    Tensor result = call.new_result();
    if (call.samples == 0) return result;
    std::optional<Tensor> bias;
    if (call.bias) bias = torch::stable::reshape(torch::stable::matmul(call.attention, *call.bias), {call.kernels[0]});
    Tensor one = convolve(call.as_one(call.input), call.sample_kernels(), bias, options, call.groups);
    copy(result, torch::stable::reshape(one, call.shape));
    return result;
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Inputs& tensors, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    using namespace convolution;
    Call call(options, tensors);
    typename Backend::Guard guard(call.input);
    Tensor grad = call.checked_grad(grad_output);
    Grads<gradients> grads;
    for (int k = 0; k < gradients; k++)
      if (mask[k]) grads[k] = empty_like(*tensors[k], call.dtype);
    if (call.samples == 0) {
      for (auto& t : grads)
        if (t) torch::stable::zero_(*t);
      return grads;
    }
    bool in_kernels = mask[1] || mask[2], in_bias = call.bias && (mask[1] || mask[3]);
    auto g = convolve_backward(call.as_one(grad), call.as_one(call.input), call.sample_kernels(), options, call.groups,
                               {mask[0], in_kernels, in_bias});
    Tensor of_kernels, of_bias;
    if (in_kernels) of_kernels = torch::stable::reshape(g[1], {call.samples, -1});
    if (in_bias) of_bias = torch::stable::reshape(g[2], {call.samples, -1});
    Tensor by_kernel = transposed(call.attention);
    auto put = [&](int k, const Tensor& t) { copy(*grads[k], torch::stable::reshape(t, shape_of(*grads[k]))); };
    if (mask[0]) put(0, g[0]);
    if (mask[1]) {
      Tensor t = torch::stable::matmul(of_kernels, transposed(call.weight));
      if (in_bias) {
        Tensor more = torch::stable::matmul(of_bias, transposed(*call.bias));
        map_tensors<Backend, Add>(name, call.dtype, {t, more}, t);
      }
      put(1, t);
    }
    if (mask[2]) put(2, torch::stable::matmul(by_kernel, of_kernels));
    if (mask[3]) put(3, torch::stable::matmul(by_kernel, of_bias));
    return grads;
  }
};

using Ops = WrittenOps<CoordConv2d, DynamicConv2d>;

}  // namespace lossreg
