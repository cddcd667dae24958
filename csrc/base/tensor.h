#pragma once
// The little that the skeletons ask of a tensor, over LibTorch's stable ABI.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <optional>

#include "iteration.h"
#include "large_pages.h"
#include "schema.h"

namespace lossreg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using Shape = std::vector<int64_t>;
// The tensors of a call, in the schema's order.
using Inputs = std::vector<std::optional<Tensor>>;
// What a gradient kernel returns: a place for each differentiable tensor, in the schema's order. Those that
// needs_input_grad leaves out hold nothing.
template <int N>
using Grads = std::array<std::optional<Tensor>, N>;

// What looks like a mistake and is no error: said as torch says it, once a process for each op F.
template <class F, class... Parts>
void warn_once(const Parts&... parts) {
  static std::atomic<bool> said{false};
  if (said.exchange(true)) return;
  std::ostringstream message;
  message << F::name << ": expected ";
  (message << ... << parts);
  aoti_torch_warn(F::name, "liblossreg", 0, message.str().c_str());
}

inline Shape shape_of(const Tensor& t) {
  auto s = t.sizes();
  return Shape(s.begin(), s.end());
}

// The name of the n-th tensor of a schema, which is looked up when a message is written, and not before.
struct ArgumentName {
  const char* args;
  int n;
};
inline std::ostream& operator<<(std::ostream& out, ArgumentName name) {
  return out << Schema(name.args).tensor(name.n).name;
}

// The n-th tensor of a schema, which a call has to give.
inline const Tensor& required(const char* op, const char* args, int n, const std::optional<Tensor>& t) {
  if (!t || !t->defined()) fail(op, ArgumentName{args, n}, " to be a tensor, got None");
  return *t;
}

inline std::string dtype_text(ScalarType s) {
  switch (s) {
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(s);
  }
}

inline std::optional<DType> known_dtype(ScalarType s) {
  switch (s) {
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::Long:
      return DType::int64;
    case ScalarType::Int:
      return DType::int32;
    case ScalarType::Short:
      return DType::int16;
    case ScalarType::Char:
      return DType::int8;
    case ScalarType::Byte:
      return DType::uint8;
    case ScalarType::Bool:
      return DType::boolean;
    default:
      return std::nullopt;
  }
}

constexpr auto kFloating = "of dtype float64, float32, bfloat16 or float16";
constexpr auto kReal = "of a real dtype";

template <class Name>
DType dtype_of(const char* op, const Name& argument, const Tensor& t, bool floating) {
  std::optional<DType> d = known_dtype(t.scalar_type());
  if (!d || (floating && !is_floating(*d)))
    fail(op, argument, " ", floating ? kFloating : kReal, ", got ", d ? name_of(*d) : dtype_text(t.scalar_type()));
  return *d;
}

inline ScalarType scalar_type(DType d) {
  constexpr ScalarType types[] = {ScalarType::Double, ScalarType::Float, ScalarType::BFloat16, ScalarType::Half,
                                  ScalarType::Long,   ScalarType::Int,   ScalarType::Short,    ScalarType::Char,
                                  ScalarType::Byte,   ScalarType::Bool};
  return types[int(d)];
}

// torch.result_type of tensors: 0-d ones give way to those with dimensions.
class Promotion {
 public:
  void add(DType d, int64_t dim) {
    if (!is_floating(d)) return;
    std::optional<DType>& slot = dim > 0 ? with_dims_ : scalars_;
    slot = slot ? join(*slot, d) : d;
  }
  bool empty() const { return !with_dims_ && !scalars_; }
  DType result() const { return with_dims_ ? *with_dims_ : scalars_.value_or(DType::float32); }

 private:
  static DType join(DType a, DType b) {
    if (a == b) return a;
    if (a == DType::float64 || b == DType::float64) return DType::float64;
    return DType::float32;  // bfloat16 and float16 meet there too
  }
  std::optional<DType> with_dims_, scalars_;
};

// The dtype that is computed in: float64 where a float64 comes in or goes out, else float32.
constexpr DType compute_dtype(DType a, DType b = DType::float32) {
  return a == DType::float64 || b == DType::float64 ? DType::float64 : DType::float32;
}
// Calls use(T(0)) with the type of that dtype.
template <class Use>
void in_compute_type(DType a, DType b, Use use) {
  if (compute_dtype(a, b) == DType::float64) use(double(0));
  else use(float(0));
}

inline int32_t device_type(const Tensor& t) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}
// As torch writes it. The stable ABI has no names of devices: each backend's stands here.
inline std::string device_text(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
}
inline void expect_one_device(const char* op, const Tensor& a, const Tensor& b) {
  if (device_type(a) != device_type(b) || a.get_device_index() != b.get_device_index())
    fail(op, "all tensors on one device, got ", device_text(a), " and ", device_text(b));
}

// torch's own operator aten::NAME.OVERLOAD, with every argument of its schema, in order, defaults too.
template <int Returns = 1, class... Args>
std::array<Tensor, Returns> call_aten(const char* name, const char* overload, const Args&... args) {
  using torch::stable::detail::from;
  std::array<StableIValue, std::max<size_t>(sizeof...(Args), Returns)> stack{from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, Returns> results;
  for (int i = 0; i < Returns; i++) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

// The same memory from element `offset` of t on, and no part of an autograd graph: what ATen does to it is not
// recorded, whoever called the kernel. Not through the dispatcher by name: a small call would feel that.
inline Tensor strided(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset = 0) {
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), int64_t(shape.size()), shape.data(), strides.data(), offset, &result));
  return Tensor(result);
}
inline Shape strides_of(const Tensor& t) {
  auto s = t.strides();
  return Shape(s.begin(), s.end());
}
inline Tensor detached(const Tensor& t) {
  return strided(t, shape_of(t), strides_of(t));
}
inline Tensor narrow(const Tensor& t, int64_t dim, int64_t start, int64_t count) {
  Shape shape = shape_of(t);
  shape[dim] = count;
  return strided(t, shape, strides_of(t), start * t.strides()[dim]);
}
inline Tensor transposed(const Tensor& t) {
  return strided(t, {t.size(1), t.size(0)}, {t.strides()[1], t.strides()[0]});
}

inline Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size());
  int64_t step = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = step;
    step *= std::max<int64_t>(1, shape[d]);
  }
  return strides;
}

// Uninitialised, of these strides, on the device of `like`.
inline Tensor empty_strided(const Tensor& like, const Shape& shape, const Shape& strides, DType dtype) {
  using torch::stable::detail::from, torch::stable::detail::to;
  int32_t code = to<int32_t>(from(scalar_type(dtype)));
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), code,
                                                  device_type(like), like.get_device_index(), &result));
  Tensor made(result);
  if (like.is_cpu()) ask_for_large_pages(made.mutable_data_ptr(), made.numel() * int64_t(made.element_size()));
  return made;
}
inline Tensor new_empty(const Tensor& like, const Shape& shape, DType dtype) {
  return empty_strided(like, shape, contiguous_strides(shape), dtype);
}
// Of the same strides where they are dense.
inline Tensor empty_like(const Tensor& like, DType dtype) {
  if (like.is_contiguous()) {
    return empty_strided(like, shape_of(like), strides_of(like), dtype);
  }
  auto none = std::nullopt;
  return call_aten("aten::empty_like", "", like, std::optional(scalar_type(dtype)), none, none, none, none)[0];
}

inline std::optional<Shape> broadcast(const Shape& a, const Shape& b) {
  Shape out(std::max(a.size(), b.size()));
  for (size_t i = 1; i <= out.size(); i++) {
    int64_t x = i <= a.size() ? a[a.size() - i] : 1, y = i <= b.size() ? b[b.size() - i] : 1;
    if (x != y && x != 1 && y != 1) return std::nullopt;
    out[out.size() - i] = x == 1 ? y : x;
  }
  return out;
}
inline bool expands_to(const Shape& a, const Shape& b) {
  return broadcast(a, b) == b;
}

inline View view_of(const Tensor& t, DType dtype, const Shape& shape) {
  View v{const_cast<void*>(t.const_data_ptr()), dtype, std::vector<int64_t>(shape.size(), 0)};
  auto sizes = t.sizes(), strides = t.strides();
  size_t lead = shape.size() - sizes.size();
  for (size_t d = 0; d < sizes.size(); d++) v.strides[lead + d] = sizes[d] == 1 ? 0 : strides[d];
  return v;
}
inline View contiguous_view(void* data, DType dtype, const Shape& shape) {
  return {data, dtype, contiguous_strides(shape)};
}
// The view of an operand that a call lacks. It reads as 1 everywhere; kernels that write look whether there is data.
inline View absent_view(const Shape& shape) {
  return {nullptr, DType::float32, Shape(shape.size(), 0)};
}
// For kernels that compute offsets of their own: the strides are t's, dimension 0 the outermost as in torch. A tensor
// without gaps may have more dimensions than an operand holds strides, and is counted through by a kernel.
inline Operand operand_of(const Tensor& t) {
  Operand o;
  o.data = const_cast<void*>(t.const_data_ptr());
  o.dtype = *known_dtype(t.scalar_type());
  auto strides = t.strides();
  std::copy_n(strides.begin(), std::min<size_t>(strides.size(), kMaxDims), o.stride);
  return o;
}

// Sums a tensor of the broadcast shape back to the shape of the operand it is the gradient of.
inline Tensor sum_to(const Tensor& full, const Shape& shape) {
  Shape from = shape_of(full), dims;
  size_t lead = from.size() - shape.size();
  for (size_t d = 0; d < from.size(); d++)
    if (d < lead || (shape[d - lead] == 1 && from[d] != 1)) dims.push_back(int64_t(d));
  if (dims.empty()) return full;
  Tensor summed = torch::stable::sum(full, torch::headeronly::IntHeaderOnlyArrayRef(dims), true);
  return torch::stable::reshape(summed, shape);
}

}  // namespace lossreg
