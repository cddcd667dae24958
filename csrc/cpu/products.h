#pragma once
// Matrix products by torch, on the CPU.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "packed.h"

namespace lossreg::cpu {

// Past the dispatcher, to which the stable ABI can give no Scalar.
inline void add_product(const Tensor& out, const Tensor& addend, double beta, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), addend.get(), a.get(), b.get(), beta, 1.0));
}
inline void wide_product(Tensor out, const Tensor& a, const Tensor& b) {
  torch::stable::copy_(out, call_aten("aten::mm", "", a, b)[0]);
}

// Products of fewer rows are slower: with 512 features and 32000 classes in float32, chunks of 64 rows take half as
// long again as chunks of 512. Larger chunks leave the cache.
struct Products {
  static int64_t chunk_bytes(int64_t) { return 64 << 20; }
  static constexpr int64_t whole_rows = 1, row_step = 1;
  static DType sum_dtype(DType dtype) { return compute_dtype(dtype); }
  // Where the processor has instructions for bfloat16, a product of such matrices takes a quarter of the time that one
  // of float32 takes.
  static DType factor_dtype(DType dtype) {
    return dtype == DType::bfloat16 && multiplies_bfloat16() ? dtype : compute_dtype(dtype);
  }
  static constexpr bool packs = kPacks;
  using Packed = PackedMatrix;
};

}  // namespace lossreg::cpu
