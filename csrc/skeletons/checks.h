#pragma once
// What ops ask of their arguments: each check once, with the words that a user sees. `argument` is a name, as a text or
// as an ArgumentName.
#include "../base/tensor.h"

namespace lossreg {

// The dtype of a result: the one that was asked for, or the op's own.
inline DType result_dtype(const char* op, const std::optional<ScalarType>& asked, DType own) {
  if (!asked) return own;
  std::optional<DType> d = known_dtype(*asked);
  if (!d || !is_floating(*d)) fail(op, "dtype float64, float32, bfloat16 or float16, got ", dtype_text(*asked));
  return *d;
}

// "target of the shape of input, got [3] and [4]": of two tensors that do not fit, `other` is the one named last.
template <class Name, class Other>
[[noreturn]] void fail_shapes(const char* op, const Name& argument, const char* relation, const Other& other,
                              const Shape& other_shape, const Shape& shape) {
  fail(op, argument, relation, other, ", got ", shape_text(other_shape), " and ", shape_text(shape));
}
template <class Name, class Other>
void check_same_shape(const char* op, const Name& argument, const Shape& shape, const Other& other,
                      const Shape& other_shape) {
  if (shape != other_shape) fail_shapes(op, argument, " of the shape of ", other, other_shape, shape);
}
// The shape of `argument` follows from that of `other`.
template <class Name, class Other>
void check_shape(const char* op, const Name& argument, const Shape& shape, const Shape& expected, const Other& other,
                 const Shape& other_shape) {
  if (shape != expected)
    fail(op, argument, " of shape ", shape_text(expected), " for ", other, " of shape ", shape_text(other_shape),
         ", got ", shape_text(shape));
}

// An operand of a matrix product or a convolution, which has to be what `input` is.
template <class Name>
void check_operand(const char* op, const Name& argument, const Tensor& t, const Tensor& input, DType dtype) {
  expect_one_device(op, input, t);
  DType got = dtype_of(op, argument, t, false);
  if (got != dtype) fail(op, argument, " of the dtype of input, ", name_of(dtype), ", got ", name_of(got));
}

// How many classes a tensor of this shape has scores of. A class is a number of 32 bits.
template <class Name>
void check_classes(const char* op, const Name& argument, const Shape& shape, int64_t classes, int64_t least = 1) {
  if (classes < least)
    fail(op, argument, " of at least ", least == 1 ? "one class" : "two classes", ", got ", shape_text(shape));
  if (classes > INT32_MAX) fail(op, argument, " of at most ", INT32_MAX, " classes, got ", shape_text(shape));
}
template <class Name>
void check_class_indices(const char* op, const Name& argument, DType dtype) {
  if (dtype != DType::int64 && dtype != DType::int32 && dtype != DType::uint8)
    fail(op, argument, " of dtype int64, int32 or uint8, got ", name_of(dtype));
}
// Returns the dtype of the class weight.
template <class Name>
DType check_class_weight(const char* op, const Name& argument, const Tensor& weight, int64_t classes,
                         const Tensor& input) {
  DType dtype = dtype_of(op, argument, weight, false);
  expect_one_device(op, input, weight);
  if (shape_of(weight) != Shape{classes})
    fail(op, argument, " of one entry a class, ", shape_text({classes}), ", got ", shape_text(shape_of(weight)));
  return dtype;
}

// A value and its gradient in one pass: the gradient of one number.
inline void expect_reduced(const char* op, const std::optional<Reduction>& reduction) {
  if (!reduction || *reduction == Reduction::none) fail(op, "a reduction beside the gradient, got none");
}
// The entries of needs_input_grad.
inline void check_gradient_mask(const char* op, const std::vector<bool>& mask, int gradients) {
  expect(int64_t(mask.size()) == gradients, op, "one entry of needs_input_grad a gradient", mask.size());
}
// The gradient of a result of this shape. Returns its dtype.
inline DType check_grad_output(const char* op, const Tensor& grad_output, const Shape& expected, const Tensor& input,
                               const char* argument = "grad_output") {
  if (shape_of(grad_output) != expected)
    fail(op, argument, " of shape ", shape_text(expected), ", got ", shape_text(shape_of(grad_output)));
  expect_one_device(op, input, grad_output);
  return dtype_of(op, argument, grad_output, true);
}
// What the forward pass kept, as it made it.
inline void check_state(const char* op, const Tensor& state, const Shape& expected, DType dtype, const Tensor& input) {
  if (state.scalar_type() != scalar_type(dtype) || shape_of(state) != expected || !state.is_contiguous())
    fail(op, "the ", name_of(dtype), " state of the forward pass, of shape ", shape_text(expected), ", got ",
         shape_text(shape_of(state)));
  expect_one_device(op, input, state);
}
// A gradient is asked for in this argument.
template <class Name>
void check_differentiable(const char* op, const Name& argument, DType dtype) {
  if (!is_floating(dtype)) fail(op, argument, " ", kFloating, " for a gradient, got ", name_of(dtype));
}
template <class Name>
void check_no_gradient_beside_indices(const char* op, const Name& argument, bool wanted, bool class_indices) {
  if (wanted && class_indices)
    fail(op, argument, " without gradient for a target of class indices, got one that asks for it");
}

}  // namespace lossreg
