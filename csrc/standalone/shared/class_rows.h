#pragma once
// Rows of class scores, (C) or (N, C), for ops that go through the classes of a row: by one thread in vector loops, or
// by a team of threads.
#include "../../skeletons/standalone.h"

namespace lossreg {

// The score of class c in row r is data[r * row + c * step]. It is stored as S and computed with as T; L neighbouring
// classes are taken at once.
template <class T, class S, int L>
struct Scores {
  using Compute = T;
  using Storage = S;
  static constexpr int kStrip = L;
  // Are L neighbours a pack, which a GPU reads with one instruction? Only each_strip asks for L of them then.
  static constexpr bool kPacked = L > 1 && L * sizeof(S) == 16;
  S* data;
  int64_t row, step;

  HD T at(int64_t r, int64_t c) const { return widen<T>(data[r * row + c * step]); }
  // The n scores from class c on: a pointer into the tensor, if that holds numbers of T side by side, else the buffer.
  HD const T* read(int64_t r, int64_t c, int n, T (&buffer)[L]) const {
    const S* from = data + (r * row + c * step);
    if constexpr (kPacked) {
      Packed x;
      if (n == L) x = *reinterpret_cast<const Packed*>(from);
      else x.at[0] = from[0];
      LOSSREG_UNROLL
      for (int j = 0; j < n; j++) buffer[j] = widen<T>(x.at[j]);
      return buffer;
    }
    if constexpr (L > 1 && std::is_same_v<S, T>)
      if (step == 1) return from;
    if (step == 1)
      for (int j = 0; j < n; j++) buffer[j] = widen<T>(from[j]);
    else
      for (int j = 0; j < n; j++) buffer[j] = widen<T>(from[j * step]);
    return buffer;
  }
  HD void write(int64_t r, int64_t c, int n, const T* x) const {
    S* to = data + (r * row + c * step);
    if constexpr (kPacked) {
      Packed y;
      LOSSREG_UNROLL
      for (int j = 0; j < n; j++) y.at[j] = Narrow<S>::from(x[j]);
      if (n == L) *reinterpret_cast<Packed*>(to) = y;
      else to[0] = y.at[0];
      return;
    }
    if (step == 1)
      for (int j = 0; j < n; j++) to[j] = Narrow<S>::from(x[j]);
    else
      for (int j = 0; j < n; j++) to[j * step] = Narrow<S>::from(x[j]);
  }

  // How many classes of a row lie before the first pack, which begins on a boundary of 16 bytes.
  HD int64_t head(int64_t r) const { return int64_t(-reinterpret_cast<uintptr_t>(data + r * row) / sizeof(S) % L); }
  // Are packs of this row packs of the other's row too?
  HD bool packs_with(const Scores& other, int64_t r) const {
    return step == 1 && other.step == 1 && head(r) == other.head(r);
  }

 private:
  struct alignas(16) Packed {
    S at[L];
  };
};

// Shares the classes out to the threads of a team: calls use(c, n) for classes c to c + n - 1, with n <= L.
template <int L, class Team, class Use>
HD void each_tile(int64_t classes, const Team& team, Use use) {
  for (int64_t c = team.rank() * L; c < classes; c += team.size() * L) use(c, int(classes - c < L ? classes - c : L));
}
// The same for a row of scores, by packs where scores are `packed`, and what is left over at both ends one by one:
// there n is a constant, either L or 1.
template <class In, class Team, class Use>
HD void each_strip(const In& x, int64_t r, bool packed, int64_t classes, const Team& team, Use use) {
  constexpr int L = In::kStrip;
  if constexpr (!In::kPacked) {
    each_tile<L>(classes, team, use);
  } else {
    int64_t head = packed ? x.head(r) : classes;
    if (head > classes) head = classes;
    const int64_t packs = (classes - head) / L, edges = classes - packs * L;
    LOSSREG_UNROLL_BY(4)  // that many loads are under way at once
    for (int64_t p = team.rank(); p < packs; p += team.size()) use(head + p * L, std::integral_constant<int, L>{});
    for (int64_t e = team.rank(); e < edges; e += team.size())
      use(e < head ? e : e + packs * L, std::integral_constant<int, 1>{});
  }
}
// The sum of L numbers, which is halved into vectors first. Overwrites them.
template <class T, int L>
HD double lane_sum(T (&lane)[L]) {
  for (int half = L / 2; half >= 8; half /= 2)
    for (int j = 0; j < half; j++) lane[j] += lane[j + half];
  double sum = 0;
  for (int j = 0; j < (L < 8 ? L : 8); j++) sum += double(lane[j]);
  return sum;
}

// A team of one thread.
struct Alone {
  HD int64_t rank() const { return 0; }
  HD int64_t size() const { return 1; }
  HD void sync() const {}
  template <class T>
  HD T sum(T value) const {
    return value;
  }
  template <class T>
  HD T max(T value) const {
    return value;
  }
};
template <class Body>
struct OneThread {
  Body body;
  HD void operator()(int64_t i) const { body(i, Alone{}); }
};
// Calls body(row, team) for every row. On a GPU the team is a block of threads where a row has classes enough for one.
template <class Backend, class Body>
void each_row(int64_t rows, int64_t classes, int64_t cost, const Body& body) {
  if constexpr (Backend::kStrip == 1)
    if (classes >= 64) return Backend::teams(rows, cost, body);
  Backend::each(rows, cost, OneThread<Body>{body});
}
template <class Backend>
constexpr int kClassStrip = Backend::kStrip > 1 ? 64 : 1;
// The same for each_strip, of scores that are stored as S.
template <class Backend, class S>
constexpr int kPackStrip = Backend::kStrip > 1 ? 64 : 16 / int(sizeof(S));

// The class indices of each row, one or a list of them, and how many classes there are.
struct Classes {
  Operand index;
  int64_t row, step, count;

  HD int64_t at(int64_t r, int64_t j) const { return get<int64_t>(index, r * row + j * step); }
  HD bool valid(int64_t c) const { return c >= 0 && c < count; }
};

struct WriteQuotient {
  Operand out;
  double divisor;
  HD void operator()(const double (&sums)[1]) const { put(out, 0, sums[0] / divisor); }
};
template <class Invalid>
struct CountInvalid {
  Invalid invalid;
  HD void operator()(int64_t i, double (&sums)[1]) const {
    int64_t which;
    sums[0] += invalid(i, which) ? 1.0 : 0.0;
  }
};
struct Keep {
  double* sum;
  HD void operator()(const double (&sums)[1]) const { *sum = sums[0]; }
};

// The tensors of a call over (C) or (N, C), checked against each other. Where F::lists, the target has the shape of the
// input and holds a list of classes for each row, else it holds one class for each row.
template <class F>
struct MarginCall {
  Tensor input, target;
  std::optional<Tensor> weight;
  DType dtype, target_dtype;
  int64_t rows, classes;
  Shape result_shape;

  explicit MarginCall(const Inputs& inputs)
      : input(required(F::name, F::args, 0, inputs[0])), target(required(F::name, F::args, 1, inputs[1])) {
    dtype = dtype_of(F::name, "input", input, true);
    target_dtype = dtype_of(F::name, "target", target, false);
    expect_one_device(F::name, input, target);
    Shape shape = shape_of(input), got = shape_of(target);
    if (shape.size() > 2) fail(F::name, "input of shape (C) or (N, C), got ", shape_text(shape));
    rows = shape.size() == 2 ? shape[0] : 1;
    classes = shape.empty() ? 1 : shape.back();
    check_classes(F::name, "input", shape, classes);
    check_class_indices(F::name, "target", target_dtype);
    result_shape = shape.size() == 2 ? Shape{rows} : Shape{};
    if constexpr (F::lists) {
      // one class may come without a dimension
      auto at_least_1d = [](const Shape& s) { return s.empty() ? Shape{1} : s; };
      if (at_least_1d(got) != at_least_1d(shape))
        fail_shapes(F::name, "target", " of the shape of ", "input", shape, got);
    } else {
      bool one_row = rows == 1 && (got.empty() || got == Shape{1});
      if (!one_row) check_shape(F::name, "target", got, result_shape, "input", shape);
      result_shape = got;
    }
    if (inputs.size() > 2 && inputs[2]) {
      weight = inputs[2];
      check_class_weight(F::name, "weight", *weight, classes, input);
    }
  }

  // The strides from row to row and along the last dimension, which is the rows themselves where `row` says so.
  static std::array<int64_t, 2> strides(const Tensor& t, bool row) {
    auto s = t.strides();
    if (row) return {t.dim() > 0 && t.sizes()[0] > 1 ? s[0] : 0, 0};
    return {t.dim() == 2 ? s[0] : 0, t.dim() > 0 ? s[t.dim() - 1] : 0};
  }
  Classes targets() const {
    auto s = strides(target, !F::lists);
    return {operand_of(target), s[0], s[1], classes};
  }
  Operand class_weight() const { return weight ? operand_of(*weight) : Operand{}; }
  template <class T, class S, int L>
  static Scores<T, S, L> scores(const Tensor& t) {
    auto s = strides(t, false);
    return {static_cast<S*>(const_cast<void*>(t.const_data_ptr())), s[0], s[1]};
  }
  // Calls use(scores) with the type that the scores are stored in, and the one that is computed in beside `other`.
  template <int L, class Use>
  void with_scores(DType other, Use use) const {
    in_compute_type(dtype, other, [&](auto zero) {
      with_floating_storage(dtype, [&](auto* tag) {
        using T = decltype(zero);
        using S = std::remove_pointer_t<decltype(tag)>;
        if constexpr (sizeof(S) <= sizeof(T)) use(scores<T, S, L>(input));
      });
    });
  }

  // Where the host may look at values: fails with a class index that is out of range, if there is one. invalid(i,
  // which) says whether row i has one, and sets `which` to it. `other` tells what else an index may be.
  template <class Backend, class Invalid>
  void check_targets(const Invalid& invalid, const char* other) const {
    if constexpr (Backend::checks_values) {
      double found = 0;
      Backend::template total<1>(input, rows, F::lists ? classes : 1, CountInvalid<Invalid>{invalid}, Keep{&found});
      int64_t which = 0;
      for (int64_t i = 0; found > 0 && i < rows; i++)
        if (invalid(i, which)) fail(F::name, "a class index in [0, ", classes, ")", other, ", got ", which);
    }
  }

  // The result of the op. losses(operand) has to write the loss of each row into the operand.
  template <class Backend, class Losses>
  Tensor reduce(Reduction reduction, DType out_dtype, Losses losses) const {
    if (reduction == Reduction::none) {
      Tensor out = new_empty(input, result_shape, out_dtype);
      losses(operand_of(out));
      return out;
    }
    Tensor out = new_empty(input, {}, out_dtype), each = new_empty(input, {rows}, DType::float64);
    losses(operand_of(each));
    AddLoss sum{static_cast<const double*>(each.const_data_ptr())};
    double divisor = reduction == Reduction::mean ? double(rows) : 1.0;
    Backend::template total<1>(input, rows, 1, sum, WriteQuotient{operand_of(out), divisor});
    return out;
  }
  struct RowGradient {
    Operand grad;
    int64_t row;
    double scale;
    template <class T>
    HD T at(int64_t r) const {
      return T(get<double>(grad, r * row) * scale);
    }
  };
  RowGradient check_grad(const Tensor& grad_output, Reduction reduction) const {
    check_grad_output(F::name, grad_output, reduction == Reduction::none ? result_shape : Shape{}, input);
    return {operand_of(grad_output), strides(grad_output, true)[0],
            reduction == Reduction::mean ? 1.0 / double(rows) : 1.0};
  }
};

}  // namespace lossreg
