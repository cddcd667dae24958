#pragma once
// What losses over lattices of states share: CTC and the RNN transducer. A team goes through one
// sample's lattice, a row of states at a time, each from the row before. Logarithms of probabilities, which grow with
// the length of a sequence, are added up in double.
#include "../../base/iteration.h"
#include "../../base/log_sum_exp.h"
#include "../../skeletons/standalone.h"

namespace lossreg {
namespace lattice {

// The type that is computed in, for scores that are stored as S.
template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

// Of how many steps the scores are read at once. Where a team has memory of its own, the steps between two reads wait
// for no other.
template <class Team>
constexpr int kMostSteps = Team::kMemory > 0 ? 8 : 1;

// Copies one value a step. All are read before the first is written, so that they are under way at once.
template <int K, class S, class T>
HD void copy_steps(const S* from, int64_t from_step, T* to, int64_t to_step, int steps) {
  T value[K];
  LOSSREG_UNROLL
  for (int k = 0; k < K; k++)
    if (K == 1 || k < steps) value[k] = widen<T>(from[k * from_step]);
  LOSSREG_UNROLL
  for (int k = 0; k < K; k++)
    if (K == 1 || k < steps) to[k * to_step] = value[k];
}

// A team's memory for the states of one sample, by arrays of one place a state of a row, `width` of them.
template <class Team>
class Memory {
 public:
  // With so many bytes a state, and so many more a state and step.
  HD Memory(const Team& team, int64_t width, int64_t fixed, int64_t a_step) : width_(width) {
    if constexpr (Team::kMemory > 0) {
      next_ = reinterpret_cast<char*>(team.memory());
      // a place between two arrays, so that each begins where a double may
      int64_t fit = (Team::kMemory / (width_ + 1) - fixed) / a_step;
      steps_ = int(fit < 0 ? 0 : fit < kMostSteps<Team> ? fit : kMostSteps<Team>);
    }
  }
  // How many steps fit; 0: not one.
  HD int steps() const { return steps_; }
  template <class T>
  HD T* take(int64_t rows) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += (rows * width_ * int64_t(sizeof(T)) + 7) / 8 * 8;
    return array;
  }

 private:
  int64_t width_;
  char* next_ = nullptr;
  int steps_ = 0;
};

// ---- the host's part

// Calls use(S*) with the type that scores are stored as. As with_floating_storage, which is compiled for the device
// too; and what is called here launches kernels.
template <class Use>
void with_score_storage(DType dtype, Use use) {
  if (dtype == DType::float64) use(static_cast<double*>(nullptr));
  else if (dtype == DType::float32) use(static_cast<float*>(nullptr));
  else if (dtype == DType::bfloat16) use(static_cast<BFloat16*>(nullptr));
  else use(static_cast<Float16*>(nullptr));
}

// How many entries of each sample count, a tensor of one integer a sample, brought to the device of the scores `x`,
// which are the argument `input`: lengths may be on the CPU, and are sent over without waiting. A graph that is
// recorded would send what lies in their memory when it is replayed.
template <class Backend>
Operand lengths_of(const char* op, const char* argument, Tensor& t, int64_t samples, const char* input,
                   const Tensor& x) {
  DType dtype = dtype_of(op, argument, t, false);
  if (is_floating(dtype) || dtype == DType::boolean) fail(op, argument, " of an integer dtype, got ", name_of(dtype));
  if (t.dim() > 1 || t.numel() != samples) check_shape(op, argument, shape_of(t), {samples}, input, shape_of(x));
  if (!x.is_cpu() && t.is_cpu()) {
    if (typename Backend::Guard(x).records())
      fail(op, argument, " on ", device_text(x), " while a graph is captured, got cpu");
    t = torch::stable::to(t, x.device(), true);
  }
  expect_one_device(op, x, t);
  return operand_of(t);
}
inline void check_length(const char* op, const char* argument, int64_t value, int64_t most) {
  if (value < 0 || value > most) fail(op, argument, " in [0, ", most, "], got ", value);
}
// Expanded tensors have sizes that no memory holds. Classes, steps and states are numbered in 32 bits.
inline void check_lattice_sizes(const char* op, int64_t steps, int64_t classes, int64_t labels) {
  constexpr int64_t kMost = INT32_MAX / 4;
  if (std::max({steps, classes, labels}) > kMost)
    fail(op, "at most ", kMost, " steps, classes and labels, got ", steps, ", ", classes, " and ", labels);
}
// Where float64 is asked for, scores of another dtype are converted.
inline void widen_scores(Tensor& scores, DType& dtype, std::optional<ScalarType> wanted) {
  if (wanted != ScalarType::Double || dtype == DType::float64) return;
  scores = torch::stable::to(scores, ScalarType::Double);
  dtype = DType::float64;
}

}  // namespace lattice
}  // namespace lossreg
