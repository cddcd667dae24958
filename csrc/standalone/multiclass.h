#pragma once
// Margin losses over the classes of a row, whose target is one class, a list of classes, or a number for each class.
#include "shared/class_rows.h"

namespace lossreg {

// max(0, z)^p of a multi-class margin, and its slope: 0 at the kink.
template <class T>
HD T hinge(T z, bool squared) {
  T h = relu(z);
  return squared ? h * h : h;
}
template <class T>
HD T hinge_slope(T z, bool squared) {
  T h = squared ? T(2) * z : T(1);
  return z <= T(0) ? T(0) : h;
}

struct InvalidClass {
  Classes target;
  HD bool operator()(int64_t i, int64_t& which) const {
    which = target.at(i, 0);
    return !target.valid(which);
  }
};

template <class In>
struct MultiMarginRows {
  using T = typename In::Compute;
  static constexpr int L = In::kStrip;
  In x;
  Classes target;
  Operand weight, loss;
  bool squared;
  double margin;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    int64_t y = target.at(i, 0);
    bool valid = target.valid(y);
    T rest = valid ? T(margin) - x.at(i, y) : T(NAN), lane[L] = {};
    each_tile<L>(target.count, team, [&](int64_t c, int n) {
      T buffer[L];
      const T* scores = x.read(i, c, n, buffer);
      for (int j = 0; j < n; j++) {
        T h = hinge(rest + scores[j], squared);
        lane[j] += c + j == y ? T(0) : h;
      }
    });
    double sum = team.sum(lane_sum(lane));
    double w = valid ? get<double>(weight, y * weight.stride[0]) : 1.0;
    if (team.rank() == 0) put(loss, i, w * sum / double(target.count));
  }
};
template <class In, class RowGradient>
struct MultiMarginGrad {
  using T = typename In::Compute;
  static constexpr int L = In::kStrip;
  In x, grad;
  Classes target;
  Operand weight;
  RowGradient grad_output;
  bool squared;
  double margin;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    int64_t y = target.at(i, 0);
    bool valid = target.valid(y);
    T g = grad_output.template at<T>(i) / T(target.count);
    g = valid ? g * get<T>(weight, y * weight.stride[0]) : T(NAN);
    T rest = valid ? T(margin) - x.at(i, y) : T(0), lane[L] = {};
    each_tile<L>(target.count, team, [&](int64_t c, int n) {
      T buffer[L], d[L];
      const T* scores = x.read(i, c, n, buffer);
      for (int j = 0; j < n; j++) {
        T h = hinge_slope(rest + scores[j], squared);
        h = c + j == y ? T(0) : h;
        lane[j] += h;
        d[j] = g * h;
      }
      grad.write(i, c, n, d);
    });
    T sum = T(team.sum(lane_sum(lane))), d[1] = {-g * sum};
    if (team.rank() == 0 && valid) grad.write(i, y, 1, d);
  }
};

// sum_{c != y} w_y max(0, margin - x_y + x_c)^p / C
struct MultiMarginLoss {
  static constexpr auto name = "multi_margin_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, int p=1, float margin=1.0, Tensor? weight=None, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 1;
  static constexpr bool keeps_state = false, lists = false;
  int64_t p;
  double margin;

  static MultiMarginLoss make(int64_t p, double margin, Reduction) {
    expect(p == 1 || p == 2, name, "p = 1 or p = 2", p);
    expect(margin == margin, name, "margin that is a number", margin);
    return {p, margin};
  }
  template <class Backend>
  Tensor value(const Inputs& inputs, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    MarginCall<MultiMarginLoss> call(inputs);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.dtype);
    call.check_targets<Backend>(InvalidClass{call.targets()}, "");
    return call.reduce<Backend>(*reduction, out_dtype, [&](const Operand& loss) {
      call.with_scores<kClassStrip<Backend>>(out_dtype, [&](auto x) {
        MultiMarginRows<decltype(x)> body{x, call.targets(), call.class_weight(), loss, p == 2, margin};
        each_row<Backend>(call.rows, call.classes, call.classes, body);
      });
    });
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Inputs& inputs, std::optional<Reduction> reduction,
                        const std::vector<bool>& mask) const {
    MarginCall<MultiMarginLoss> call(inputs);
    auto g = call.check_grad(grad_output, *reduction);
    typename Backend::Guard guard(call.input);
    if (!mask[0]) return {};
    call.check_targets<Backend>(InvalidClass{call.targets()}, "");
    Tensor result = empty_like(call.input, call.dtype);
    call.with_scores<kClassStrip<Backend>>(g.grad.dtype, [&](auto x) {
      using In = decltype(x);
      auto out = call.scores<typename In::Compute, typename In::Storage, In::kStrip>(result);
      MultiMarginGrad<In, decltype(g)> body{x, out, call.targets(), call.class_weight(), g, p == 2, margin};
      each_row<Backend>(call.rows, call.classes, call.classes, body);
    });
    return {result};
  }
};

// The target classes of a row: the entries of its list before the first -1.
struct ClassList {
  Classes target;
  uint8_t* is_target;  // a row of marks for each row of scores

  // The length of row i's list; -1, and what was found in `invalid`, if the list has an entry that is out of range.
  HD int64_t length(int64_t i, int64_t& invalid) const {
    for (int64_t j = 0; j < target.count; j++) {
      int64_t c = target.at(i, j);
      if (c == -1) return j;
      if (!target.valid(c)) {
        invalid = c;
        return -1;
      }
    }
    return target.count;
  }
  // A mark for each class of row i: is it in the list?
  template <class Team>
  HD const uint8_t* mark(int64_t i, int64_t length, const Team& team) const {
    uint8_t* marks = is_target + i * target.count;
    for (int64_t c = team.rank(); c < target.count; c += team.size()) marks[c] = 0;
    team.sync();
    for (int64_t j = team.rank(); j < length; j += team.size()) marks[target.at(i, j)] = 1;
    team.sync();
    return marks;
  }
};
struct InvalidList {
  ClassList list;
  HD bool operator()(int64_t i, int64_t& which) const { return list.length(i, which) < 0; }
};

template <class In>
struct MultilabelMarginRows {
  using T = typename In::Compute;
  static constexpr int L = In::kStrip;
  In x;
  ClassList list;
  Operand loss;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    int64_t invalid, length = list.length(i, invalid), classes = list.target.count;
    const uint8_t* marks = list.mark(i, length, team);
    double total = 0;  // of up to classes * length terms: a float would lose digits
    each_tile<L>(classes, team, [&](int64_t c, int n) {
      T buffer[L], lane[L] = {};
      const T* scores = x.read(i, c, n, buffer);
      for (int64_t k = 0; k < length; k++) {
        T rest = T(1) - x.at(i, list.target.at(i, k));
        for (int j = 0; j < n; j++) {
          T h = hinge(rest + scores[j], false);
          lane[j] += marks[c + j] ? T(0) : h;
        }
      }
      total += double(lane_sum(lane));
    });
    double sum = team.sum(total);
    if (team.rank() == 0) put(loss, i, length < 0 ? double(NAN) : sum / double(classes));
  }
};
template <class In, class RowGradient>
struct MultilabelMarginGrad {
  using T = typename In::Compute;
  static constexpr int L = In::kStrip;
  In x, grad;
  ClassList list;
  RowGradient grad_output;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    int64_t invalid, length = list.length(i, invalid), classes = list.target.count;
    const uint8_t* marks = list.mark(i, length, team);
    T g = length < 0 ? T(NAN) : grad_output.template at<T>(i) / T(classes);
    each_tile<L>(classes, team, [&](int64_t c, int n) {
      T buffer[L], d[L] = {};
      const T* scores = x.read(i, c, n, buffer);
      for (int64_t k = 0; k < length; k++) {
        T rest = T(1) - x.at(i, list.target.at(i, k));
        for (int j = 0; j < n; j++) d[j] += hinge_slope(rest + scores[j], false);
      }
      for (int j = 0; j < n; j++) d[j] = g * (marks[c + j] ? T(0) : d[j]);
      grad.write(i, c, n, d);
    });
    // The gradient at a target class y: a term for each class that is no target, as often as the list holds y.
    for (int64_t k = 0; k < length; k++) {
      int64_t y = list.target.at(i, k), times = 0;
      T rest = T(1) - x.at(i, y), lane[L] = {};
      each_tile<L>(classes, team, [&](int64_t c, int n) {
        T buffer[L];
        const T* scores = x.read(i, c, n, buffer);
        for (int j = 0; j < n; j++) {
          T h = hinge_slope(rest + scores[j], false);
          lane[j] += marks[c + j] ? T(0) : h;
        }
      });
      for (int64_t other = 0; other < length; other++) times += list.target.at(i, other) == y;
      T sum = T(team.sum(lane_sum(lane))), d[1] = {-g * (T(times) * sum)};
      if (team.rank() == 0) grad.write(i, y, 1, d);
    }
  }
};

// sum over the target classes y, as often as they are listed, and the classes c that are none, of
// max(0, 1 - x_y + x_c) / C
struct MultilabelMarginLoss {
  static constexpr auto name = "multilabel_margin_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool keeps_state = false, lists = true;

  static MultilabelMarginLoss make(Reduction) { return {}; }
  using Call = MarginCall<MultilabelMarginLoss>;
  static ClassList list_of(const Call& call, const Tensor& marks) {
    return {call.targets(), static_cast<uint8_t*>(marks.mutable_data_ptr())};
  }

  template <class Backend>
  Tensor value(const Inputs& inputs, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    Call call(inputs);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.dtype);
    Tensor marks = new_empty(call.input, {call.rows, call.classes}, DType::uint8);
    ClassList list = list_of(call, marks);
    call.check_targets<Backend>(InvalidList{list}, " or -1");
    return call.reduce<Backend>(*reduction, out_dtype, [&](const Operand& loss) {
      call.with_scores<kClassStrip<Backend>>(out_dtype, [&](auto x) {
        each_row<Backend>(call.rows, call.classes, 4 * call.classes, MultilabelMarginRows<decltype(x)>{x, list, loss});
      });
    });
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Inputs& inputs, std::optional<Reduction> reduction,
                        const std::vector<bool>& mask) const {
    Call call(inputs);
    auto g = call.check_grad(grad_output, *reduction);
    typename Backend::Guard guard(call.input);
    if (!mask[0]) return {};
    Tensor result = empty_like(call.input, call.dtype);
    Tensor marks = new_empty(call.input, {call.rows, call.classes}, DType::uint8);
    ClassList list = list_of(call, marks);
    call.check_targets<Backend>(InvalidList{list}, " or -1");
    call.with_scores<kClassStrip<Backend>>(g.grad.dtype, [&](auto x) {
      using In = decltype(x);
      auto out = call.scores<typename In::Compute, typename In::Storage, In::kStrip>(result);
      MultilabelMarginGrad<In, decltype(g)> body{x, out, list, g};
      each_row<Backend>(call.rows, call.classes, 8 * call.classes, body);
    });
    return {result};
  }
};

// The binary cross entropy of one class with logits, and a weight.
template <class T>
HD T class_value(T x, T t, T w) {
  return w * (x * ((x > T(0) ? T(1) : T(0)) - t) + log1p_unit(exp_negative(-abs(x))));
}
struct ClassValueBody {
  template <class T>
  HD void operator()(const T (&x)[3], T (&out)[1]) const {
    out[0] = class_value(x[0], x[1], x[2]);
  }
};
template <int O>
struct ClassGradBody {
  double scale;
  template <class T>
  HD void operator()(const T (&x)[4], T (&out)[O]) const {
    T g = x[0] * T(scale);
    out[0] = g * x[3] * (sigmoid(x[1]) - x[2]);
    if constexpr (O > 1) {
      out[1] = -g * x[3] * x[1];
      out[2] = g * class_value(x[1], x[2], T(1));
    }
  }
};

// The sum over the classes of one row. `it` iterates over the rows, of input, target, weight and result.
template <class T, int L>
struct ClassSum {
  Iteration<4> it;
  int64_t step[3], classes;
  double divisor;

  HD void read(int k, int64_t offset, int64_t c, int n, T (&x)[L]) const {
    const Operand& o = it.operand[k];
    for (int j = 0; j < n; j++) x[j] = T(1);
    if (!o.data) return;
    with_storage(o.dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      const S* from = static_cast<const S*>(o.data) + offset + c * step[k];
      for (int j = 0; j < n; j++) x[j] = widen<T>(from[j * step[k]]);
    });
  }
  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    int64_t offset[4];
    it.offsets(i, offset);
    T lane[L] = {};
    each_tile<L>(classes, team, [&](int64_t c, int n) {
      T x[L], t[L], w[L];
      read(0, offset[0], c, n, x);
      read(1, offset[1], c, n, t);
      read(2, offset[2], c, n, w);
      for (int j = 0; j < n; j++) lane[j] += class_value(x[j], t[j], w[j]);
    });
    double sum = team.sum(lane_sum(lane));
    if (team.rank() == 0) put(it.operand[3], offset[3], sum / divisor);
  }
};

// sum_c w_c BCE-with-logits(x_c, t_c) / C, where input, target and weight broadcast. As in torch, the sum runs over the
// dimension whose number is that of the input's last one, and C is the input's size there.
struct MultilabelSoftMarginLoss {
  static constexpr auto name = "multilabel_soft_margin_loss";
  static constexpr auto args = "Tensor input, Tensor target, Tensor? weight=None, str reduction=\"mean\"";
  static constexpr int inputs = 3, gradients = 3;
  static constexpr bool keeps_state = false;

  static MultilabelSoftMarginLoss make(Reduction) { return {}; }

  struct Call {
    Inputs tensors;
    DType dtypes[3], result;
    Shape shape, row_shape;  // of the losses of classes, and of rows
    size_t axis;
    double classes, rows = 1;

    explicit Call(const Inputs& inputs) : tensors(inputs) {
      Promotion promotion;
      for (int k = 0; k < 3; k++) {
        if (k == 2 && !tensors[k]) continue;
        const Tensor& t = required(name, args, k, tensors[k]);
        dtypes[k] = dtype_of(name, ArgumentName{args, k}, t, k == 0);
        expect_one_device(name, *tensors[0], t);
        promotion.add(dtypes[k], t.dim());
        if (k == 0) {
          shape = shape_of(t);
          if (shape.empty()) fail(name, "input of at least one dimension, got []");
          axis = shape.size() - 1;
          classes = double(shape[axis]);
          continue;
        }
        auto joined = broadcast(shape, shape_of(t));
        if (!joined)
          fail_shapes(name, ArgumentName{args, k}, " that broadcasts with ", "input", shape_of(*tensors[0]),
                      shape_of(t));
        shape = *joined;
      }
      element_count(name, shape);
      result = promotion.result();
      row_shape = shape;
      row_shape.erase(row_shape.begin() + axis);
      for (int64_t s : row_shape) rows *= double(s);
    }
    View view(int k) const { return tensors[k] ? view_of(*tensors[k], dtypes[k], shape) : absent_view(shape); }
    // A view over the rows: without the dimension of the classes.
    View row_view(View v) const {
      v.strides.erase(v.strides.begin() + axis);
      return v;
    }
    // The factor of each class's loss in a reduced result. A sum over no rows is 0, whatever C is.
    double scale(Reduction reduction) const {
      if (reduction == Reduction::mean) return 1.0 / (rows * classes);
      return reduction == Reduction::sum && rows == 0 ? 1.0 : 1.0 / classes;
    }
  };

  template <class Backend>
  Tensor value(const Inputs& inputs, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    Call call(inputs);
    const Tensor& input = *call.tensors[0];
    typename Backend::Guard guard(input);
    DType out_dtype = result_dtype(name, dtype, call.result);
    bool none = reduction == Reduction::none;
    Tensor out = new_empty(input, none ? call.row_shape : Shape{}, out_dtype);
    View views[4] = {call.view(0), call.view(1), call.view(2)};
    in_compute_type(call.result, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      if (!none) {
        auto it = make_iteration<3>(name, call.shape, views);
        return Backend::Pointwise::template sum<T, 3>(it, ClassValueBody{}, call.scale(*reduction), out, out_dtype);
      }
      ClassSum<T, kClassStrip<Backend>> body{{}, {}, call.shape[call.axis], call.classes};
      for (int k = 0; k < 3; k++) {
        body.step[k] = views[k].strides[call.axis];
        views[k] = call.row_view(views[k]);
      }
      views[3] = view_of(out, out_dtype, call.row_shape);
      body.it = make_iteration<4>(name, call.row_shape, views);
      each_row<Backend>(body.it.numel, body.classes, 4 * body.classes, body);
    });
    return out;
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Inputs& inputs, std::optional<Reduction> reduction,
                        const std::vector<bool>& mask) const {
    Call call(inputs);
    const Tensor& input = *call.tensors[0];
    typename Backend::Guard guard(input);
    bool none = reduction == Reduction::none;
    Shape expected = none ? call.row_shape : Shape{};
    DType grad_dtype = check_grad_output(name, grad_output, expected, input);
    View grad_view = view_of(grad_output, grad_dtype, expected);
    if (none) grad_view.strides.insert(grad_view.strides.begin() + call.axis, 0);
    else grad_view.strides.assign(call.shape.size(), 0);

    Grads<3> grads;  // of the whole shape, and at the end summed to that of their tensors
    View views[7] = {grad_view, call.view(0), call.view(1), call.view(2)};
    for (int k = 0; k < 3; k++) {
      views[4 + k] = absent_view(call.shape);
      if (!mask[k]) continue;
      const Tensor& t = required(name, args, k, call.tensors[k]);
      check_differentiable(name, ArgumentName{args, k}, call.dtypes[k]);
      // the gradient of an operand that was expanded is summed at the end, and kept in a wide type until then
      DType wide = compute_dtype(call.result);
      bool same = shape_of(t) == call.shape;
      grads[k] = same ? empty_like(t, call.dtypes[k]) : new_empty(t, call.shape, wide);
      views[4 + k] = view_of(*grads[k], same ? call.dtypes[k] : wide, call.shape);
    }
    double scale = call.scale(none ? Reduction::sum : *reduction);
    in_compute_type(call.result, grad_dtype, [&](auto zero) {
      using T = decltype(zero);
      if (mask[1] || mask[2])
        Backend::Pointwise::template map<T, 4, 3>(make_iteration<7>(name, call.shape, views), ClassGradBody<3>{scale});
      else
        Backend::Pointwise::template map<T, 4, 1>(make_iteration<5>(name, call.shape, views), ClassGradBody<1>{scale});
    });
    for (int k = 0; k < 3; k++)
      if (grads[k] && shape_of(*call.tensors[k]) != call.shape)
        grads[k] = torch::stable::to(sum_to(*grads[k], shape_of(*call.tensors[k])), scalar_type(call.dtypes[k]));
    return grads;
  }
};

using Ops = WrittenOps<MultiMarginLoss, MultilabelMarginLoss, MultilabelSoftMarginLoss>;

}  // namespace lossreg
