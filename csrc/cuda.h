#pragma once
// The CUDA backend: grid-stride kernels over packs of elements, reductions by warp and block, in an order that depends
// on the sizes alone, so that results are the same from run to run. Launches go through launch(), onto the current
// stream of the tensors' device; nothing synchronises, nothing is read on the host, memory comes from torch's
// allocator.
#include "cuda/launch.h"
#include "skeletons/boxwise/cuda.h"
#include "skeletons/groupwise/cuda.h"
#include "skeletons/pointwise/cuda.h"
#include "skeletons/regionwise/cuda.h"
#include "skeletons/rowwise/cuda.h"

namespace lossreg {

struct Cuda {
  // A value outside the domain gives NaN: an error would need a synchronisation.
  static constexpr bool checks_values = false;
  // Elements side by side that one thread takes at once: threads are the vector.
  static constexpr int kLanes = 1;

  using Pointwise = cuda::PointwiseKernels;
  using Rows = cuda::RowKernels;
  using Groups = cuda::GroupKernels;
  using Boxes = cuda::BoxKernels;
  using Regions = cuda::RegionKernels;

  using Guard = cuda::Guard;
  // False: the row kernel writes zeros and targets in one pass.
  static bool zero(const Tensor&) { return false; }

  // See cpu.h.
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
    Tensor partial = new_empty(like, {int64_t(blocks) * K}, DType::float64);
    auto* sums = static_cast<double*>(partial.mutable_data_ptr());
    cuda::launch(cuda::total_kernel<K, Body>, blocks, cuda::kThreads, n, body, sums);
    cuda::launch(cuda::finish_total<K, Finish>, 1u, cuda::kThreads, sums, int64_t(blocks), finish);
  }
};

}  // namespace lossreg
