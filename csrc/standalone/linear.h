#pragma once
// linear_cross_entropy: the (N, C) scores, or (N, C, d1 ... dk), exist for one chunk of rows at a time.
#include "../formulas/shared/cross_entropy.h"
#include "../skeletons/rowwise/kernel.h"
#include "../skeletons/standalone.h"

namespace lossreg {

// Cross entropy of a chunk's scores, under the name that messages begin with.
struct ScoreLoss : CrossEntropy {
  static constexpr auto name = "linear_cross_entropy";
  static constexpr auto args = "Tensor scores, Tensor target, Tensor? weight";
};

namespace linear {

// out = a b
template <class Backend>
void product(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.scalar_type() == a.scalar_type()) call_aten("aten::mm", "out", a, b, out);
  else Backend::wide_product(out, a, b);
}

inline Tensor rows_of(const Tensor& t, int64_t first, int64_t count) {
  return narrow(t, 0, first, count);
}
inline Tensor ones(const Tensor& like, const Shape& shape, DType dtype) {
  return torch::stable::fill_(new_empty(like, shape, dtype), 1.0);
}

// x[0], a gradient of the sum of losses, for a result that is the sum divided by x[2] and has the gradient x[1]. Where
// no row counts, x[2] is 0, and so is the gradient.
struct Scale {
  template <class T>
  HD void operator()(const T (&x)[3], T (&y)[1]) const {
    y[0] = x[2] == T(0) ? T(0) : x[0] / x[2] * x[1];
  }
};

// The sums of the rows' losses and of the chunks' normalisers; there are no more chunks than rows.
struct SumLosses {
  Operand losses, normalisers;
  int64_t chunks;
  HD void operator()(int64_t i, double (&sums)[2]) const {
    sums[0] += get<double>(losses, i);
    if (i < chunks) sums[1] += get<double>(normalisers, i);
  }
};
struct FinishLoss {
  Operand result, normaliser;  // no result: it is not reduced
  bool mean;
  HD void operator()(const double (&sums)[2]) const {
    if (result.data) put(result, 0, mean ? sums[0] / sums[1] : sums[0]);
    put(normaliser, 0, mean ? sums[1] : 1.0);
  }
};

// The tensor arguments in the schema's order.
enum Argument { kInputAt, kLinearWeightAt, kTargetAt, kLinearBiasAt, kWeightAt, kArguments };

// The tensors of one call, checked against each other. Unbatched, they count as one row; the leading dimensions of an
// input with several count as one. The d1 ... dk of linear_weight are one dimension of P places, each a loss of its
// own.
template <class F>
struct Call {
  Tensor input, linear_weight, target;        // (N, D), (C P, D), (N, ...) or (N, C, ...), where ... is P if there is k
  std::optional<Tensor> linear_bias, weight;  // (C P), (C)
  DType dtype, result;
  Shape row_shape;  // of the losses: (..., d1 ... dk)
  Shape places;     // (P), or () without k
  int64_t rows, features, classes, columns;
  bool probabilities;

  explicit Call(const Inputs& tensors)
      : input(detached(required(F::name, F::args, kInputAt, tensors[kInputAt]))),
        linear_weight(detached(required(F::name, F::args, kLinearWeightAt, tensors[kLinearWeightAt]))),
        target(detached(required(F::name, F::args, kTargetAt, tensors[kTargetAt]))) {
    dtype = dtype_of(F::name, name(kInputAt), input, true);
    Shape shape = shape_of(input), of_weight = shape_of(linear_weight);
    if (shape.empty()) fail(F::name, "input of shape (..., D), got []");
    features = shape.back();
    if (of_weight.size() < 2 || of_weight.back() != features)
      fail(F::name, "linear_weight of shape (C, ..., ", features, ") for input of shape ", shape_text(shape), ", got ",
           shape_text(of_weight));
    check_operand(F::name, name(kLinearWeightAt), linear_weight, input, dtype);
    classes = of_weight[0];
    Shape outputs(of_weight.begin(), of_weight.end() - 1);  // (C, d1 ... dk)
    Shape inner(outputs.begin() + 1, outputs.end());
    columns = element_count(F::name, outputs);
    if (!inner.empty()) {
      places = {element_count(F::name, inner)};
      if (shape.size() != 2)
        fail(F::name, "input of shape (N, ", features, ") for linear_weight of shape ", shape_text(of_weight), ", got ",
             shape_text(shape));
    }
    if (tensors[kLinearBiasAt]) {
      linear_bias = detached(*tensors[kLinearBiasAt]);
      check_shape(F::name, "linear_bias", shape_of(*linear_bias), outputs, "linear_weight", of_weight);
      check_operand(F::name, name(kLinearBiasAt), *linear_bias, input, dtype);
      linear_bias = torch::stable::reshape(*linear_bias, {columns});
    }
    if (tensors[kWeightAt]) weight = detached(*tensors[kWeightAt]);

    row_shape.assign(shape.begin(), shape.end() - 1);
    rows = element_count(F::name, row_shape);
    if (shape.size() > 2) {
      // the row kernels know no more than one dimension before the classes
      Shape expected = row_shape;
      if (is_floating(dtype_of(F::name, name(kTargetAt), target, false))) expected.push_back(classes);
      check_shape(F::name, name(kTargetAt), shape_of(target), expected, "input", shape);
      target = torch::stable::reshape(target, expected.size() == row_shape.size() ? Shape{rows} : Shape{rows, classes});
    }
    // the row skeleton's own checks, on scores of that shape that take no memory
    Shape of_scores = shape.size() == 1 ? Shape{} : Shape{rows};
    of_scores.insert(of_scores.end(), outputs.begin(), outputs.end());
    Tensor scores = strided(new_empty(input, {}, dtype), of_scores, Shape(of_scores.size()));
    RowCall<ScoreLoss> checked({scores, target, weight});
    probabilities = checked.probabilities;
    result = checked.result;
    row_shape.insert(row_shape.end(), inner.begin(), inner.end());
    element_count(F::name, {rows, features});
    element_count(F::name, {rows, columns});
    input = torch::stable::reshape(input, {rows, features});
    linear_weight = torch::stable::reshape(linear_weight, {columns, features});
    target = torch::stable::reshape(target, probabilities ? scores_shape(rows) : losses_shape(rows));
  }

  ArgumentName name(int k) const { return {F::args, k}; }
  // Of the losses of so many rows, and of their scores, whose columns are the places of one class, then of the next.
  Shape losses_shape(int64_t count) const { return with_places({count}); }
  Shape scores_shape(int64_t count) const { return with_places({count, classes}); }
  // What sums over rows are kept in.
  DType wide() const { return compute_dtype(dtype); }

 private:
  Shape with_places(Shape shape) const {
    shape.insert(shape.end(), places.begin(), places.end());
    return shape;
  }
};

// The gradients of input, linear_weight and linear_bias, of those that are asked for, as sums over rows.
struct GradientSums {
  DType dtype;
  Shape shape[kArguments];
  int64_t elements = 0;
  std::vector<bool> mask;
  Grads<kArguments> part;

  template <class F>
  GradientSums(const Call<F>& call, const std::vector<bool>& mask, DType dtype) : dtype(dtype), mask(mask) {
    shape[kInputAt] = {call.rows, call.features};
    shape[kLinearWeightAt] = {call.columns, call.features};
    shape[kLinearBiasAt] = {call.columns, 1};
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt})
      if (mask[k]) elements += shape[k][0] * shape[k][1];
  }
  // The elements of the state, a tensor of dtype `wide`: the sums one after the other, then the mean's denominator.
  int64_t state_size(DType wide) const { return (elements * size_of(dtype) + size_of(wide) - 1) / size_of(wide) + 1; }
  // Puts the sums into a state.
  void place_in(const Tensor& state) {
    bool same = state.scalar_type() == scalar_type(dtype);
    Tensor flat = same ? state : call_aten("aten::view", "dtype", state, scalar_type(dtype))[0];
    int64_t start = 0;
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt}) {
      if (!mask[k]) continue;
      part[k] = strided(flat, shape[k], {shape[k][1], 1}, start);
      start += shape[k][0] * shape[k][1];
    }
  }
  // Puts each into the gradient itself, where that can hold it, else into a tensor of its own.
  void place_beside(const Grads<kArguments>& grads) {
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt}) {
      if (!mask[k]) continue;
      const Tensor& grad = *grads[k];
      bool fits = grad.scalar_type() == scalar_type(dtype) && grad.is_contiguous();
      part[k] = fits ? strided(grad, shape[k], {shape[k][1], 1}) : new_empty(grad, shape[k], dtype);
    }
  }
};

// The rows [first, first + count): their losses, and the state of the row kernels, whose last entry is the normaliser.
struct Chunk {
  int64_t index, first, count;
  Tensor input, scores, target, loss, state;
};

// A pass over all rows, one chunk at a time.
template <class F, class Backend>
class Pass {
 public:
  Pass(const F& f, const Call<F>& call, DType loss_dtype, bool gradients)
      : call_(call), row_loss_{{f.ignore_index, f.smoothing}}, loss_dtype_(loss_dtype) {
    constexpr int64_t whole = Backend::Products::whole_rows, step = Backend::Products::row_step;
    bool apart = gradients && !Backend::Rows::gradients_in_place;
    row_step_ = (call.columns + step - 1) / step * step;
    int64_t weight_bytes = call.columns * call.features * size_of(call.dtype);
    int64_t room = Backend::Products::chunk_bytes(weight_bytes) / (size_of(call.dtype) * (apart ? 2 : 1));
    int64_t most = row_step_ ? std::max<int64_t>(1, room / row_step_) : 1;
    if (most > whole) most -= most % whole;
    chunks_ = row_step_ ? (call.rows + most - 1) / most : 0;    // nothing to do for no places
    rows_ = chunks_ ? (call.rows + chunks_ - 1) / chunks_ : 0;  // chunks of about one size
    rows_ = std::min((rows_ + whole - 1) / whole * whole, std::min(most, call.rows));
    scores_ = matrix();
    slopes_ = apart ? matrix() : scores_;
  }
  int64_t chunks() const { return chunks_; }

  template <class Use>
  void each(Use use) const {
    for (int64_t i = 0; i < chunks_; i++) {
      int64_t first = i * rows_, count = std::min(rows_, call_.rows - first);
      Chunk c{i,
              first,
              count,
              rows_of(call_.input, first, count),
              as_scores(scores_, count),
              rows_of(call_.target, first, count),
              {},
              {}};
      Tensor classes = transposed(call_.linear_weight);
      Tensor scores = rows_of(scores_, 0, count);
      if (call_.linear_bias) Backend::add_product(scores, *call_.linear_bias, 1.0, c.input, classes);
      else product<Backend>(scores, c.input, classes);
      std::tie(c.loss, c.state) = RowKernel<ScoreLoss, Backend>::forward(row_loss_, {c.scores, c.target, call_.weight},
                                                                         Reduction::none, scalar_type(loss_dtype_));
      use(c);
    }
  }

  // Adds the chunk's part to the gradients. grad_loss: of each row's loss, or one for all. Destroys the scores.
  void backpropagate(const Chunk& c, const Tensor& grad_loss, const GradientSums& gradients) const {
    Tensor slopes = rows_of(slopes_, 0, c.count), of_scores = as_scores(slopes_, c.count);
    RowCall<ScoreLoss> call({c.scores, c.target, call_.weight});
    Rows rows = call.problem(c.state, &grad_loss, &of_scores, nullptr, nullptr);
    in_compute_type(call.result, *known_dtype(grad_loss.scalar_type()), [&](auto zero) {
      with_row_mode<ScoreLoss>(row_loss_.mode(call.probabilities),
                               [&](auto mode) { Backend::Rows::template grad<decltype(zero), mode>(row_loss_, rows); });
    });
    if (gradients.mask[kInputAt])
      product<Backend>(rows_of(*gradients.part[kInputAt], c.first, c.count), slopes, call_.linear_weight);
    if (gradients.mask[kLinearWeightAt]) sum_rows(*gradients.part[kLinearWeightAt], c.index == 0, slopes, c.input);
    if (gradients.mask[kLinearBiasAt])
      sum_rows(*gradients.part[kLinearBiasAt], c.index == 0, slopes, ones(c.input, {c.count, 1}, call_.dtype));
  }
  // The gradients in the row loss's target and weight, those that are asked for.
  Grads<ScoreLoss::gradients> backpropagate_shares(const Chunk& c, const Tensor& grad_loss, bool target,
                                                   bool weight) const {
    Shape shape = call_.losses_shape(c.count);
    Tensor of_rows = grad_loss.numel() == 1 ? strided(grad_loss, shape, Shape(shape.size())) : grad_loss;
    return RowKernel<ScoreLoss, Backend>::grad(row_loss_, of_rows, c.state, {c.scores, c.target, call_.weight},
                                               Reduction::none, {false, target, weight});
  }

 private:
  // (rows, C P), each row as far from the next as products like it
  Tensor matrix() const {
    return empty_strided(call_.input, {rows_, call_.columns}, {std::max<int64_t>(1, row_step_), 1}, call_.dtype);
  }
  // The first rows of a matrix as the row kernels have them.
  Tensor as_scores(const Tensor& t, int64_t count) const {
    Shape shape = call_.scores_shape(count), strides = contiguous_strides(shape);
    strides[0] = t.strides()[0];
    return strided(t, shape, strides);
  }
  // sum += slopes^T x; the first chunk sets it.
  void sum_rows(const Tensor& sum, bool first, const Tensor& slopes, const Tensor& x) const {
    Tensor by_class = transposed(slopes);
    if (sum.scalar_type() == x.scalar_type()) {
      if (first) product<Backend>(sum, by_class, x);
      else Backend::add_product(sum, sum, 1.0, by_class, x);
      return;
    }
    // low precision: some classes at a time, and added up in float32
    int64_t row_bytes = std::max<int64_t>(1, x.size(1)) * size_of(call_.wide());
    int64_t most = std::max<int64_t>(1, Backend::Products::chunk_bytes(0) / 8 / row_bytes);
    for (int64_t at = 0; at < call_.columns; at += most) {
      int64_t count = std::min(most, call_.columns - at);
      Tensor part = new_empty(x, {count, x.size(1)}, call_.wide()), to = rows_of(sum, at, count);
      product<Backend>(first ? to : part, rows_of(by_class, at, count), x);
      if (!first) map_tensors<Backend, Add>(ScoreLoss::name, call_.wide(), {to, part}, to);
    }
  }

  const Call<F>& call_;
  const ScoreLoss row_loss_;
  DType loss_dtype_;
  int64_t chunks_, rows_, row_step_;
  Tensor scores_, slopes_;
};

}  // namespace linear

// Scores and their gradient are of the operands' dtype, as in F.linear; losses, and sums over rows, are float32 at
// least.
struct LinearCrossEntropy {
  static constexpr auto name = "linear_cross_entropy";
  static constexpr auto args =
      "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias=None, Tensor? weight=None, "
      "int ignore_index=-100, str reduction=\"mean\", float label_smoothing=0.0";
  static constexpr int inputs = 5, gradients = 5;
  static constexpr bool keeps_state = true, forward_mask = true;
  int64_t ignore_index;
  double smoothing;

  static LinearCrossEntropy make(int64_t ignore_index, Reduction, double label_smoothing) {
    expect(label_smoothing >= 0 && label_smoothing <= 1, name, "label_smoothing in [0, 1]", label_smoothing);
    return {ignore_index, label_smoothing};
  }

  // Computing the scores again in the backward pass would be a fourth matrix product. A reduced loss does without: its
  // gradient is a number times that of the sum, which the forward pass computes while it has the scores. The gradients
  // in class probabilities and weights are as large as all scores, or rare: those calls, too, start again.
  static bool kept(std::optional<Reduction> reduction, const std::vector<bool>& mask) {
    using namespace linear;
    return reduction != Reduction::none && (mask[kInputAt] || mask[kLinearWeightAt] || mask[kLinearBiasAt]) &&
           !mask[kTargetAt] && !mask[kWeightAt];
  }

  template <class Backend>
  Tensor value(const Inputs& tensors, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return std::get<0>(forward<Backend>(tensors, reduction, dtype, std::vector<bool>(gradients)));
  }

  // The state: the gradients of the sum of losses where they are kept, and the mean's denominator.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& tensors, std::optional<Reduction> reduction,
                                     std::optional<ScalarType> dtype, const std::vector<bool>& mask) const {
    using namespace linear;
    Call<LinearCrossEntropy> call(tensors);
    check(call);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.result), loss_dtype = compute_dtype(out_dtype, call.result);
    bool keep = kept(reduction, mask), reduced = reduction != Reduction::none;
    GradientSums sums(call, keep ? mask : std::vector<bool>(gradients), Backend::Products::sum_dtype(call.dtype));
    Tensor state = new_empty(call.input, {sums.state_size(call.wide())}, call.wide());
    sums.place_in(state);

    Pass<LinearCrossEntropy, Backend> pass(*this, call, loss_dtype, keep);
    if (pass.chunks() == 0) torch::stable::zero_(state);
    Tensor losses = new_empty(call.input, call.losses_shape(call.rows), loss_dtype);
    Tensor normalisers = new_empty(call.input, {pass.chunks()}, DType::float64);
    Tensor one = ones(call.input, {}, call.wide());
    pass.each([&](const Chunk& c) {
      Tensor loss = rows_of(losses, c.first, c.count), normaliser = rows_of(normalisers, c.index, 1);
      torch::stable::copy_(loss, c.loss);
      torch::stable::copy_(normaliser, rows_of(c.state, c.state.numel() - 1, 1));
      if (keep) pass.backpropagate(c, one, sums);
    });

    Tensor result = new_empty(call.input, {}, out_dtype);
    FinishLoss finish{reduced ? operand_of(result) : Operand{}, operand_of(normaliser_in(state)),
                      reduction == Reduction::mean};
    SumLosses sum{operand_of(losses), operand_of(normalisers), pass.chunks()};
    Backend::template total<2>(losses, losses.numel(), 1, sum, finish);
    if (reduced) return {result, state};
    Tensor of_rows = torch::stable::to(losses, scalar_type(out_dtype));
    return {torch::stable::reshape(of_rows, call.row_shape), state};
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& tensors,
                        std::optional<Reduction> reduction, const std::vector<bool>& mask) const {
    using namespace linear;
    Call<LinearCrossEntropy> call(tensors);
    check(call);
    typename Backend::Guard guard(call.input);
    bool reduced = reduction != Reduction::none;
    DType grad_dtype = check_grad_output(name, grad_output, reduced ? Shape{} : call.row_shape, call.input);
    for (int k : {kTargetAt, kWeightAt})
      check_no_gradient_beside_indices(name, call.name(k), mask[k], !call.probabilities);
    GradientSums sums(call, mask, Backend::Products::sum_dtype(call.dtype));
    bool keep = kept(reduction, mask);
    check_state(name, state, {keep ? sums.state_size(call.wide()) : 1}, call.wide(), call.input);

    Grads<gradients> grads;
    for (int k = 0; k < kArguments; k++)
      if (mask[k]) grads[k] = empty_like(*tensors[k], *known_dtype(tensors[k]->scalar_type()));
    Tensor normaliser = normaliser_in(state);
    if (keep) {
      sums.place_in(state);
    } else {
      sums.place_beside(grads);
      Tensor grad_loss = torch::stable::reshape(grad_output, reduced ? Shape{1} : call.losses_shape(call.rows));
      if (reduced) {
        grad_loss = new_empty(call.input, {1}, call.wide());
        map_tensors<Backend, Scale>(ScoreLoss::name, call.wide(),
                                    {ones(state, {1}, call.wide()), grad_output, normaliser}, grad_loss);
      }
      recompute<Backend>(call, grad_loss, sums, grads[kTargetAt], grads[kWeightAt]);
    }
    for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt}) {
      if (!mask[k]) continue;
      Tensor part = torch::stable::reshape(*sums.part[k], shape_of(*grads[k]));
      DType compute = compute_dtype(grad_dtype, call.dtype);
      if (keep) map_tensors<Backend, Scale>(ScoreLoss::name, compute, {part, grad_output, normaliser}, *grads[k]);
      else if (part.const_data_ptr() != grads[k]->const_data_ptr()) torch::stable::copy_(*grads[k], part);
    }
    return grads;
  }

 private:
  static Tensor normaliser_in(const Tensor& state) { return linear::rows_of(state, state.numel() - 1, 1); }
  // torch.nn.functional.linear_cross_entropy refuses any ignore_index there; the default is no different from none.
  void check(const linear::Call<LinearCrossEntropy>& call) const {
    if (call.probabilities && ignore_index != -100)
      fail(name, "class indices as target beside an ignore_index, got class probabilities and ", ignore_index);
  }

  template <class Backend>
  void recompute(const linear::Call<LinearCrossEntropy>& call, const Tensor& grad_loss, linear::GradientSums& sums,
                 std::optional<Tensor>& grad_target, std::optional<Tensor>& grad_weight) const {
    using namespace linear;
    bool products = sums.elements > 0;
    DType loss_dtype = compute_dtype(call.result, call.dtype);
    Pass<LinearCrossEntropy, Backend> pass(*this, call, loss_dtype, products);
    if (pass.chunks() == 0)
      for (int k : {kInputAt, kLinearWeightAt, kLinearBiasAt})
        if (sums.mask[k]) torch::stable::zero_(*sums.part[k]);
    if (grad_weight) torch::stable::zero_(*grad_weight);
    bool apart = grad_target && !grad_target->is_contiguous();
    Tensor by_row;  // the gradient in the target, as the chunks have it
    if (grad_target) {
      Shape shape = call.scores_shape(call.rows);
      by_row = apart ? new_empty(call.input, shape, *known_dtype(grad_target->scalar_type()))
                     : torch::stable::reshape(*grad_target, shape);
    }
    pass.each([&](const Chunk& c) {
      Tensor of_chunk = grad_loss.size(0) == 1 ? grad_loss : rows_of(grad_loss, c.first, c.count);
      if (grad_target || grad_weight) {
        auto shares = pass.backpropagate_shares(c, of_chunk, bool(grad_target), bool(grad_weight));
        if (grad_target) {
          Tensor place = rows_of(by_row, c.first, c.count);
          torch::stable::copy_(place, *shares[1]);
        }
        if (grad_weight)
          map_tensors<Backend, Add>(ScoreLoss::name, call.wide(), {*grad_weight, *shares[2]}, *grad_weight);
      }
      if (products) pass.backpropagate(c, of_chunk, sums);
    });
    if (apart) torch::stable::copy_(*grad_target, torch::stable::reshape(by_row, shape_of(*grad_target)));
  }
};

using Ops = WrittenOps<LinearCrossEntropy>;

}  // namespace lossreg
