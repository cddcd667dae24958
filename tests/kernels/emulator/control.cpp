// What the tests ask of the emulator, through ctypes.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <sstream>
#include <string>

#include "accesses.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::ostringstream host;  // a line for each allocation and each call of an operator of torch
std::string text;         // what was asked for last

void note(const char* what, AtenTensorHandle first, AtenTensorHandle second = nullptr) {
  host << what;
  for (AtenTensorHandle t : {first, second}) {
    if (!t) continue;
    int64_t dims, *sizes;
    aoti_torch_get_dim(t, &dims);
    aoti_torch_get_sizes(t, &sizes);
    host << ' ';
    for (int64_t d = 0; d < dims; d++) host << (d ? "x" : "") << sizes[d];
  }
  host << '\n';
}

}  // namespace

EXPORT void lossreg_emulator_seed(uint64_t seed) {
  emulator::random.seed(seed);
}
EXPORT void lossreg_emulator_forget() {
  emulator::launches.clear();
  emulator::forget_watched();
  host.str("");
}
// Whether launches are recorded from now on, as for a CUDA graph.
EXPORT void lossreg_emulator_record(bool recording) {
  emulator::recording = recording;
}
// How many blocks of each launch run from now on; 0: none, negative: all. And whether their accesses are counted.
EXPORT void lossreg_emulator_limit(int64_t blocks, bool counting) {
  emulator::most_blocks = blocks < 0 ? INT64_MAX : blocks;
  emulator::counting = counting;
}
// Memory whose accesses count, beside what the ops allocate.
EXPORT void lossreg_emulator_watch(const void* data, size_t bytes) {
  emulator::watch(data, bytes);
}
// A line for each launch: address of the kernel, blocks, threads, blocks that ran; of loads, then of stores: requests,
// sectors, distinct sectors, bytes.
EXPORT const char* lossreg_emulator_launches() {
  std::ostringstream out;
  for (const emulator::Launch& l : emulator::launches) {
    out << reinterpret_cast<uintptr_t>(l.kernel) << ' ' << l.blocks << ' ' << l.threads << ' ' << l.ran;
    for (const emulator::Traffic& t : {l.loads, l.stores})
      out << ' ' << t.requests << ' ' << t.sectors << ' ' << t.distinct << ' ' << t.bytes;
    out << '\n';
  }
  return (text = out.str()).c_str();
}
// A line for each allocation, "empty BYTES", and each call of torch: name, overload, sizes of the first tensors.
EXPORT const char* lossreg_emulator_host() {
  return (text = host.str()).c_str();
}

// The linker puts these before the functions of torch that they are named for (--wrap in CMakeLists.txt).
#define WRAPPED(name, ...)                              \
  extern "C" AOTITorchError __real_##name(__VA_ARGS__); \
  extern "C" AOTITorchError __wrap_##name(__VA_ARGS__)

WRAPPED(aoti_torch_empty_strided, int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype,
        int32_t device, int32_t index, AtenTensorHandle* result) {
  AOTITorchError error = __real_aoti_torch_empty_strided(dims, sizes, strides, dtype, device, index, result);
  void* data;
  int64_t bytes;
  if (!error && !aoti_torch_get_data_ptr(*result, &data) && !aoti_torch_get_storage_size(*result, &bytes)) {
    emulator::watch(data, size_t(bytes));
    host << "empty " << bytes << '\n';
  }
  return error;
}
WRAPPED(torch_call_dispatcher, const char* name, const char* overload, StableIValue* stack, uint64_t version) {
  auto tensor = [&](int k) {
    AtenTensorHandle t;
    std::memcpy(&t, stack + k, sizeof t);
    return t;
  };
  bool product = std::string(name) == "aten::mm";
  bool lists = std::string(name).find("_foreach_") != std::string::npos;
  note((std::string(name) + '.' + overload).c_str(), lists ? nullptr : tensor(0), product ? tensor(1) : nullptr);
  if (product && emulator::most_blocks < INT64_MAX) {
    // nothing is computed, of whatever size it is
    AtenTensorHandle a = tensor(0), b = tensor(1), result;
    int64_t sizes[2], strides[2];
    aoti_torch_get_size(a, 0, &sizes[0]);
    aoti_torch_get_size(b, 1, &sizes[1]);
    strides[0] = sizes[1], strides[1] = 1;
    int32_t dtype;
    aoti_torch_get_dtype(a, &dtype);
    AOTITorchError error =
        __real_aoti_torch_empty_strided(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &result);
    aoti_torch_delete_tensor_object(a);
    aoti_torch_delete_tensor_object(b);
    std::memset(stack, 0, sizeof *stack);
    std::memcpy(stack, &result, sizeof result);
    return error;
  }
  return __real_torch_call_dispatcher(name, overload, stack, version);
}
WRAPPED(aoti_torch_cpu_addmm_out, AtenTensorHandle out, AtenTensorHandle self, AtenTensorHandle a, AtenTensorHandle b,
        double beta, double alpha) {
  note("aten::addmm.out", a, b);
  return emulator::most_blocks == INT64_MAX ? __real_aoti_torch_cpu_addmm_out(out, self, a, b, beta, alpha)
                                            : AOTI_TORCH_SUCCESS;
}
