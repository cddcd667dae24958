#pragma once
// Which compiler reads this text, and for which processor: the one place that names those of a GPU.
//   HD                  before a function that the host and the device call; it is always inlined
//   HD_NOINLINE         the same, never inlined
//   LOSSREG_ON_DEVICE   defined while the text is compiled for a GPU
//   LOSSREG_UNROLL      before a loop over an array: a GPU keeps it in registers only where each index is a constant
//   LOSSREG_UNROLL_BY   the same, so many turns at a time
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HD __host__ __device__ __forceinline__
#define HD_NOINLINE inline __host__ __device__ __noinline__
#else
#define HD inline __attribute__((always_inline))
#define HD_NOINLINE inline __attribute__((noinline))
#endif
#if defined(__CUDA_ARCH__)
#define LOSSREG_ON_DEVICE
#define LOSSREG_PRAGMA(text) _Pragma(#text)
#define LOSSREG_UNROLL LOSSREG_PRAGMA(unroll)
#define LOSSREG_UNROLL_BY(n) LOSSREG_PRAGMA(unroll n)
#else
#define LOSSREG_UNROLL
#define LOSSREG_UNROLL_BY(n)
#endif
