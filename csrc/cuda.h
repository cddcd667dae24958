#pragma once
// The CUDA backend: grid-stride kernels over packs of elements, reductions by warp and block, in an order that depends
// on the sizes alone, so that results are the same from run to run. Launches go through launch(), onto the current
// stream of the tensors' device; nothing synchronises, nothing is read on the host, memory comes from torch's
// allocator.
#include "cuda/launch.h"
#include "skeletons/boxwise/cuda.h"
#include "skeletons/groupwise/cuda.h"
#include "skeletons/regionwise/cuda.h"
#include "skeletons/rowwise/cuda.h"

namespace lossreg {

struct Cuda {
  static constexpr auto key = "CUDA";
  // A value outside the domain gives NaN: an error would need a synchronisation.
  static constexpr bool checks_values = false;
  // Elements side by side that one thread takes at once: threads are the vector.
  static constexpr int kLanes = 1;
  // A thread may write the gradient at the target's score while another still has to read that.
  static constexpr bool row_gradients_in_place = false;

  using Guard = cuda::Guard;
  // False: the row kernel writes zeros and targets in one pass.
  static bool zero(const Tensor&) { return false; }
  using Regions = cuda::RegionKernels;

  template <class T, int I, int O, Sweep = Sweep::forward, class Body>
  static void map(const Iteration<I + O>& it, Body body) {
    if (it.numel == 0) return;
    cuda::with_stream<T, I>(it, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      unsigned blocks = cuda::blocks_for(it.numel, cuda::kPack);
      cuda::launch(cuda::map_kernel<T, S, I, O, Body>, blocks, cuda::kThreads, it, body);
    });
  }

  template <class T, int I, class Body>
  static void sum(const Iteration<I>& it, Body body, double scale, const Tensor& out, DType dtype) {
    unsigned blocks = cuda::blocks_for(it.numel, cuda::kPack);
    Tensor partial = new_empty(out, {int64_t(blocks)}, DType::float64);
    auto* sums = static_cast<double*>(partial.mutable_data_ptr());
    cuda::with_stream<T, I>(it, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      cuda::launch(cuda::sum_kernel<T, S, I, Body>, blocks, cuda::kThreads, it, body, sums);
    });
    cuda::launch(cuda::finish_sum<1>, 1u, cuda::kThreads, sums, int64_t(blocks), cuda::Finish{scale, false},
                 out.mutable_data_ptr(), dtype, static_cast<double*>(nullptr));
  }

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

  template <class T, int Mode, class F>
  static void rows_forward(const F& f, const Rows& rows, const Tensor& out, DType dtype) {
    unsigned blocks = cuda::row_blocks(rows);
    Tensor partial = new_empty(out, {2 * int64_t(blocks)}, DType::float64);
    auto* sums = static_cast<double*>(partial.mutable_data_ptr());
    cuda::with_row_storage<T>(rows, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if (rows.across_rows())
        cuda::launch(cuda::rows_forward_across<T, S, Mode, F>, blocks, cuda::kThreads, f, rows, sums);
      else cuda::launch(cuda::rows_forward_along<T, S, Mode, F>, blocks, cuda::kThreads, f, rows, sums);
    });
    cuda::launch(cuda::finish_sum<2>, 1u, cuda::kThreads, sums, int64_t(blocks), cuda::Finish{1.0, rows.mean},
                 rows.reduced ? out.mutable_data_ptr() : nullptr, dtype, rows.normaliser);
  }
  template <class T, int Mode, class F>
  static void rows_grad(const F& f, const Rows& rows) {
    if (rows.it.numel == 0) return;
    cuda::with_row_storage<T>(rows, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if (rows.across_rows())
        cuda::launch(cuda::rows_grad_across<T, S, Mode, F>, cuda::row_blocks(rows), cuda::kThreads, f, rows);
      else cuda::launch(cuda::rows_grad_along<T, S, Mode, F>, cuda::row_blocks(rows), cuda::kThreads, f, rows);
    });
  }
  template <class T, class F>
  static void rows_share_grad(const F& f, const Rows& rows) {
    if (rows.it.numel == 0) return;
    int64_t elements = rows.it.numel * rows.classes;
    cuda::launch(cuda::rows_share_grad<T, F>, cuda::blocks_for(elements, 1), cuda::kThreads, f, rows);
  }

  template <class T, class Body>
  static void boxes_map(const Boxes& boxes, Body body) {
    if (boxes.it.numel == 0) return;
    cuda::with_box_storage<T>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      cuda::launch(cuda::boxes_map<T, S, Body>, cuda::blocks_for(boxes.it.numel, 1), cuda::kThreads, boxes, body);
    });
  }
  template <class T, class Body>
  static void boxes_sum(const Boxes& boxes, Body body, double scale, const Tensor& out, DType dtype) {
    unsigned blocks = cuda::blocks_for(boxes.it.numel, 1);
    Tensor partial = new_empty(out, {int64_t(blocks)}, DType::float64);
    auto* sums = static_cast<double*>(partial.mutable_data_ptr());
    cuda::with_box_storage<T>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      cuda::launch(cuda::boxes_sum<T, S, Body>, blocks, cuda::kThreads, boxes, body, sums);
    });
    cuda::launch(cuda::finish_sum<1>, 1u, cuda::kThreads, sums, int64_t(blocks), cuda::Finish{scale, false},
                 out.mutable_data_ptr(), dtype, static_cast<double*>(nullptr));
  }
  template <class T, class Body>
  static void boxes_grad(const Boxes& boxes, Body body, double scale) {
    if (boxes.it.numel == 0) return;
    cuda::with_box_storage<T>(boxes, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      unsigned blocks = cuda::blocks_for(boxes.it.numel, 1);
      cuda::launch(cuda::boxes_grad<T, S, Body>, blocks, cuda::kThreads, boxes, body, scale);
    });
  }

  template <class T, int Mode, class F>
  static void groups_forward(const F& f, const Groups<F>& groups, const Tensor& out, DType dtype) {
    cuda::with_lanes(groups, [&](auto shared_by) {
      constexpr int lanes = decltype(shared_by)::value;
      unsigned blocks = cuda::group_blocks(groups, lanes);
      Tensor partial = new_empty(out, {2 * int64_t(blocks)}, DType::float64);
      auto* sums = static_cast<double*>(partial.mutable_data_ptr());
      cuda::with_group_storage<T>(groups, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        cuda::launch(cuda::groups_forward<T, S, lanes, Mode, F>, blocks, cuda::kThreads, f, groups, sums);
      });
      cuda::launch(cuda::finish_sum<2, T>, 1u, cuda::kThreads, sums, int64_t(blocks), cuda::Finish{1.0, groups.mean},
                   groups.reduced ? out.mutable_data_ptr() : nullptr, dtype, static_cast<T*>(groups.valid));
    });
  }
  template <class T, int Mode, class F>
  static void groups_grad(const F& f, const Groups<F>& groups) {
    if (groups.it.numel == 0) return;
    cuda::with_lanes(groups, [&](auto shared_by) {
      constexpr int lanes = decltype(shared_by)::value;
      cuda::with_group_storage<T>(groups, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        cuda::launch(cuda::groups_grad<T, S, lanes, Mode, F>, cuda::group_blocks(groups, lanes), cuda::kThreads, f,
                     groups);
      });
    });
  }
};

}  // namespace lossreg
