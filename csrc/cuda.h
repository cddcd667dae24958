#pragma once
// The CUDA backend: grid-stride kernels over packs of elements, reductions by warp and block, in an order that depends
// on the sizes alone, so that results are the same from run to run. Launches go through launch(), onto the current
// stream of the tensors' device; nothing synchronises, nothing is read on the host, memory comes from torch's
// allocator. What each member promises: skeletons/backend.h.
#include "cuda/products.h"
#include "cuda/select.h"
#include "cuda/team.h"
#include "skeletons/boxwise/cuda.h"
#include "skeletons/groupwise/cuda.h"
#include "skeletons/pointwise/cuda.h"
#include "skeletons/regionwise/cuda.h"
#include "skeletons/rowwise/cuda.h"

namespace lossreg {

struct Cuda {
  static constexpr bool checks_values = false;
  static constexpr bool one_pass = false;
  static constexpr int kStrip = 1;

  using Pointwise = cuda::PointwiseKernels;
  using Rows = cuda::RowKernels;
  using Groups = cuda::GroupKernels;
  using Boxes = cuda::BoxKernels;
  using Regions = cuda::RegionKernels;
  using Products = cuda::Products;

  using Guard = cuda::Guard;
  static bool zero(const Tensor&) { return false; }

  static void add_product(const Tensor& out, const Tensor& addend, double beta, const Tensor& a, const Tensor& b) {
    cuda::add_product(out, addend, beta, a, b);
  }
  static void wide_product(const Tensor& out, const Tensor& a, const Tensor& b) { cuda::wide_product(out, a, b); }

  template <class Key>
  static void select_smallest(const Tensor& like, const Key* key, int64_t n, int bits, int64_t k, const double* there,
                              Selection* out) {
    cuda::select_smallest(like, key, n, bits, k, there, out);
  }

  template <class Body>
  static void each(int64_t n, int64_t, Body body) {
    if (n > 0) cuda::launch(cuda::each_kernel<Body>, cuda::blocks_for(n, 1), cuda::kThreads, n, body);
  }
  template <class Body>
  static void teams(int64_t n, int64_t, Body body) {
    auto blocks = unsigned(std::min<int64_t>(n, cuda::kMaxBlocks));
    if (n > 0) cuda::launch(cuda::teams_kernel<Body>, blocks, cuda::kThreads, n, body);
  }
  template <int K, class Body, class Finish>
  static void total(const Tensor& like, int64_t n, int64_t, Body body, Finish finish) {
    unsigned blocks = cuda::blocks_for(n, 1);
    auto launch_total = [&](auto sums) {
      cuda::launch(cuda::total_kernel<K, Body, Finish>, blocks, cuda::kThreads, n, body, sums);
    };
    cuda::sum_blocks<K>(like, blocks, launch_total, finish);
  }
};

}  // namespace lossreg
