#pragma once
// What CUDA and a torch with CUDA have for us: the device and its stream, launches, matrix products. The emulator of
// the tests stands in for all of it, and compiles every other file of this backend as it is: threads become fibers, a
// launch a loop.
#include "../base/tensor.h"

#if defined(LOSSREG_EMULATE)
#include "../cpu/products.h"

namespace lossreg::cuda {

using cpu::add_product, cpu::wide_product;
using emulator::Guard, emulator::launch, emulator::copy_16_bytes, emulator::wait_for_copies;

}  // namespace lossreg::cuda

#define LOSSREG_NOINLINE
#else
#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>

#include "errors.h"

// Weak: a CPU-only torch lacks them, and nothing calls them there. Every torch that has CUDA has them.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cuda_addmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                                                          AtenTensorHandle mat1, AtenTensorHandle mat2,
                                                                          double beta, double alpha);

#ifndef LOSSREG_CUDA_ARCHITECTURES  // CMake tells what the kernels are compiled for
#define LOSSREG_CUDA_ARCHITECTURES "unknown"
#endif

namespace lossreg::cuda {

inline thread_local void* current_stream = nullptr;

// Makes the tensor's device the current one, and its current stream that of all launches, for as long as it lives.
struct Guard {
  torch::stable::accelerator::DeviceGuard device;
  void* outer = current_stream;
  explicit Guard(const Tensor& t) : device(t.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &current_stream));
  }
  Guard(const Guard&) = delete;
  ~Guard() { current_stream = outer; }
  bool records() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(current_stream), &status);
    return error == cudaSuccess && status != cudaStreamCaptureStatusNone;
  }
};

static_assert(kDriverTooOld == cudaErrorInsufficientDriver && kNoCodeForDevice == cudaErrorNoKernelImageForDevice &&
              kPtxTooNew == cudaErrorUnsupportedPtxVersion);
[[noreturn]] inline void fail_launch(cudaError_t error) {
  int driver = 0, device = 0, major = 0, minor = 0;
  cudaDriverGetVersion(&driver);
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  LaunchFailure failure{error,  cudaGetErrorString(error), CUDART_VERSION,
                        driver, 10 * major + minor,        LOSSREG_CUDA_ARCHITECTURES};
  throw std::runtime_error(text_of(failure));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, const Arguments&... arguments) {
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(current_stream)>>>(Parameters(arguments)...);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail_launch(error);
}

// Copies 16 bytes to the block's shared memory, past the registers, while the thread goes on; both begin on a boundary
// of 16. It finds them there after wait_for_copies(), the block's other threads after a barrier besides.
__device__ inline void copy_16_bytes(void* shared, const void* memory) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(memory))
               : "memory");
}
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Past the dispatcher, to which the stable ABI can give no Scalar.
inline void add_product(const Tensor& out, const Tensor& addend, double beta, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), addend.get(), a.get(), b.get(), beta, 1.0));
}
inline void wide_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  call_aten("aten::mm", "dtype_out", a, b, out.scalar_type(), out);
}

}  // namespace lossreg::cuda

#define LOSSREG_NOINLINE __noinline__
#endif
