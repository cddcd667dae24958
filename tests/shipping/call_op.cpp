// Loads a library of ops and calls one, without Python: call_op LIBRARY OP prints OP([1, 2], [1, 5], "sum", 4.0).
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <string>

using torch::stable::Tensor;
namespace stable = torch::stable::detail;

static Tensor numbers(float first, float second) {
  int64_t shape[] = {2}, strides[] = {1};
  AtenTensorHandle made;
  aoti_torch_empty_strided(1, shape, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &made);
  Tensor t(made);
  float* data = static_cast<float*>(t.mutable_data_ptr());
  data[0] = first;
  data[1] = second;
  return t;
}

int main(int, char** words) {
  if (!dlopen(words[1], RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  StringHandle reduction;
  torch_new_string_handle("sum", 3, &reduction);
  StableIValue stack[] = {stable::from(numbers(1, 2)), stable::from(numbers(1, 5)), stable::from(reduction),
                          stable::from(4.0), stable::from(std::optional<int32_t>())};
  if (torch_call_dispatcher(words[2], "", stack, TORCH_ABI_VERSION)) return 1;
  std::printf("%g\n", double(*static_cast<const float*>(stable::to<Tensor>(stack[0]).const_data_ptr())));
}
