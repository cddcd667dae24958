#pragma once
// How large a product of matrices should be on a GPU. The products themselves: device.h.
#include "device.h"

namespace lossreg::cuda {

struct Products {
  // A product of n rows reads the whole other matrix for n multiplications an entry. Below 300 rows an H100 would wait
  // for memory, and a running sum of weight gradients, which each chunk reads and writes, wants 1024 or more. So a
  // chunk takes 1024 rows of 256,000 classes in 16 bits, or as much as the matrix itself, whose gradient a caller has
  // room for twice: in the state and as the result. While the first is computed, the second is not there yet.
  static int64_t chunk_bytes(int64_t beside) { return std::max(least_bytes(), beside); }
#if defined(LOSSREG_EMULATE)
  // So that the smallest test has several chunks; where the emulator leaves blocks out, it counts at a GPU's sizes.
  static int64_t least_bytes() { return emulator::most_blocks == INT64_MAX ? 128 : 512 << 20; }
  static constexpr int64_t whole_rows = 2;
#else
  static int64_t least_bytes() { return 512 << 20; }
  static constexpr int64_t whole_rows = 128;  // a tile of cuBLAS has as many
#endif
  // cuBLAS's fast kernels want rows that begin at a multiple of 16 bytes.
  static constexpr int64_t row_step = 8;

  // cuBLAS multiplies and adds in float32, the running sum included, and rounds once where it writes. bfloat16 has the
  // range of float32, so sums stay in it, in half of the memory: with a few chunks that costs less precision than
  // scores of bfloat16 do. A sum of float16 might overflow.
  static DType sum_dtype(DType dtype) { return dtype == DType::float16 ? DType::float32 : dtype; }
  static DType factor_dtype(DType dtype) { return dtype; }
  static constexpr bool packs = false;
  struct Packed {};
};

}  // namespace lossreg::cuda
