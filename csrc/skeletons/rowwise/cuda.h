#pragma once
// The CUDA row kernels, and which of them takes a call: a function of the sizes, the strides and where tensors begin.
// Each reads 16 bytes at once, but for cuda_any.h, which takes what lies otherwise, and float64.
#include "cuda_across.h"
#include "cuda_along.h"
#include "cuda_any.h"

namespace lossreg::cuda {

struct RowKernels {
  // A score is read by the thread that writes there, before it does, and by no other, unless the slopes depend on the
  // target's score.
  static constexpr bool gradients_in_place = true;

  template <class T, int Mode, class F>
  static void forward(const F& f, const Rows& rows, const Tensor& out, DType dtype) {
    const WriteLoss<double> finish{rows.reduced ? out.mutable_data_ptr() : nullptr, dtype, rows.mean, rows.normaliser};
    auto across = [&](auto* storage) {
      using S = std::remove_pointer_t<decltype(storage)>;
      const unsigned blocks = tile_blocks<S>(rows);
      auto launch_kernel = [&](auto sums) {
        launch(rows_forward_across<T, S, Mode, F, decltype(sums)>, blocks, kPlaneThreads, f, rows, sums);
      };
      sum_blocks<2>(out, blocks, launch_kernel, finish);
    };
    auto along = [&](auto* storage) {
      using S = std::remove_pointer_t<decltype(storage)>;
      const RowTeams teams = row_teams(rows, false);
      const unsigned blocks = team_blocks(rows, teams);
      std::optional<Tensor> pieces;
      if (teams.pieces > 1) pieces = new_empty(out, {rows.it.numel * teams.pieces * 4}, dtype_of_storage<T>);
      auto* of_pieces = pieces ? static_cast<Statistics<T>*>(pieces->mutable_data_ptr()) : nullptr;
      auto launch_kernel = [&](auto sums) {
        launch(rows_forward_along<T, S, Mode, F, decltype(sums)>, blocks, kThreads, f, rows, teams, of_pieces, sums);
      };
      sum_blocks<2>(out, blocks, launch_kernel, finish);
    };
    auto any = [&] {
      const AnyTeams teams = any_teams<T>(rows, F::softmax, is_staged(rows, kInput));
      const unsigned blocks = any_blocks(rows, teams);
      auto launch_kernel = [&](auto sums) {
        launch(rows_forward_any<T, Mode, F, decltype(sums)>, blocks, kAnyThreads, f, rows, teams, sums);
      };
      sum_blocks<2>(out, blocks, launch_kernel, finish);
    };
    // without a softmax, a row is one score
    if constexpr (F::softmax) choose<T, Mode, F>(rows, {kInput}, across, along, any);
    else any();
  }

  template <class T, int Mode, class F>
  static void grad(const F& f, const Rows& rows) {
    if (rows.it.numel == 0) return;
    auto across = [&](auto* storage) {
      using S = std::remove_pointer_t<decltype(storage)>;
      launch(rows_grad_across<T, S, Mode, F>, tile_blocks<S>(rows), kPlaneThreads, f, rows);
    };
    auto along = [&](auto* storage) {
      using S = std::remove_pointer_t<decltype(storage)>;
      // all of a row's shares are summed first, unless that is the sum of the weights
      const RowTeams teams = row_teams(rows, Mode == F::probability_mode);
      launch(rows_grad_along<T, S, Mode, F>, team_blocks(rows, teams), kThreads, f, rows, teams);
    };
    auto any = [&] {
      const bool staged = is_staged(rows, kInput) && is_staged(rows, kGradInput) && lie_alike(rows, kInput, kGradInput);
      const AnyTeams teams = any_teams<T>(rows, true, staged);
      launch(rows_grad_any<T, Mode, F>, any_blocks(rows, teams), kAnyThreads, f, rows, teams);
    };
    choose<T, Mode, F>(rows, {kInput, kGradInput}, across, along, any);
  }

  template <class T, class F>
  static void share_grad(const F& f, const Rows& rows) {
    if (rows.it.numel == 0) return;
    AnyTeams teams{1, false};
    if (rows.class_stride[kInput] == 1)
      while (teams.lanes < 32 && teams.lanes < rows.classes) teams.lanes *= 2;
    launch(rows_share_grad<T, F>, any_blocks(rows, teams), kAnyThreads, f, rows, teams);
  }

 private:
  // Calls one of the three. `operands`: those that it reads or writes in packs.
  template <class T, int Mode, class F, class Across, class Along, class Any>
  static void choose(const Rows& rows, std::initializer_list<RowOperand> operands, Across across, Along along,
                     Any any) {
    if constexpr (sizeof(T) == 4) {
      with_storage_of<T>(rows.it.operand[kInput].dtype, [&](auto* storage) {
        using S = std::remove_pointer_t<decltype(storage)>;
        // along a row, places are counted in 32 bits
        bool side_by_side = true, packed = rows.classes > kMaxStagedClasses && rows.classes <= INT32_MAX / 2;
        auto add = [&](RowOperand k) {
          side_by_side = side_by_side && is_across<S>(rows, k);
          packed = packed && rows.class_stride[k] == 1 && lie_alike(rows, kInput, k);
        };
        for (RowOperand k : operands) add(k);
        if (Mode == F::probability_mode) add(kTarget);
        if (side_by_side) across(storage);
        else if (packed) along(storage);
        else any();
      });
    } else {
      any();
    }
  }
};

}  // namespace lossreg::cuda
