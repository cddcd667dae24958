#pragma once
// Losses of images against images.
#include "image/passes.h"

namespace lossreg {

struct SSIMLoss {
  static constexpr auto name = "ssim_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, int window_size=11, float sigma=1.5, float data_range=1.0, float k1=0.01, "
      "float k2=0.03, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr bool keeps_state = false;
  int64_t window_size;
  double sigma, c1, c2;

  static SSIMLoss make(int64_t window_size, double sigma, double data_range, double k1, double k2, Reduction) {
    expect(window_size >= 1 && window_size % 2 == 1, name, "an odd window_size of at least 1", window_size);
    expect(sigma > 0 && sigma < INFINITY, name, "finite sigma > 0", sigma);
    expect(data_range > 0 && data_range < INFINITY, name, "finite data_range > 0", data_range);
    expect(k1 >= 0 && k1 < INFINITY, name, "finite k1 >= 0", k1);
    expect(k2 >= 0 && k2 < INFINITY, name, "finite k2 >= 0", k2);
    return {window_size, sigma, k1 * data_range * (k1 * data_range), k2 * data_range * (k2 * data_range)};
  }

  // The tensors of one call, checked against each other.
  struct Call {
    Tensor input, target;
    DType dtypes[2], dtype;
    Shape shape;
    int64_t rows, columns;  // of windows, in a plane

    int64_t planes() const { return shape[0] * shape[1]; }
    // So many planes at a time: what their windows take of memory is bounded, or that of one plane.
    int64_t planes_together() const {
      constexpr int64_t kPixels = 1 << 21;
      return std::clamp<int64_t>(kPixels / (shape[2] * shape[3]), 1, std::max<int64_t>(1, planes()));
    }
    double windows() const { return double(shape[1]) * double(rows) * double(columns); }  // of an image
  };
  Call parse(const Inputs& tensors) const {
    Call c{required(name, args, 0, tensors[0]), required(name, args, 1, tensors[1]), {}, {}, {}, 0, 0};
    c.dtypes[0] = dtype_of(name, "input", c.input, true);
    c.dtypes[1] = dtype_of(name, "target", c.target, false);
    expect_one_device(name, c.input, c.target);
    c.shape = shape_of(c.input);
    if (c.shape.size() != 4) fail(name, "input of shape (N, C, H, W), got ", shape_text(c.shape));
    if (c.shape[1] == 0) fail(name, "input of at least one channel, got ", shape_text(c.shape));
    check_same_shape(name, "target", shape_of(c.target), "input", c.shape);
    if (window_size > std::min(c.shape[2], c.shape[3]))
      fail(name, "window_size of at most the height and the width of input, ", shape_text({c.shape[2], c.shape[3]}),
           ", got ", window_size);
    // expanded tensors have sizes that no memory holds, and the memory for windows is a few times theirs
    element_count(name, {16, c.shape[0], c.shape[1], c.shape[2], c.shape[3]});
    Promotion promotion;
    promotion.add(c.dtypes[0], c.input.dim());
    promotion.add(c.dtypes[1], c.target.dim());
    c.dtype = promotion.result();
    c.rows = c.shape[2] - window_size + 1, c.columns = c.shape[3] - window_size + 1;
    return c;
  }
  // Calls use(rows of windows) with the type that is computed in beside `other`, and the one that both images are
  // stored in: those of another dtype are converted to it.
  template <class Backend, class Use>
  void with_rows(Call& c, DType other, Use use) const {
    in_compute_type(c.dtype, other, [&](auto zero) {
      using T = decltype(zero);
      const DType stored = sizeof(T) == 8 ? DType::float64 : c.dtype;
      for (Tensor* t : {&c.input, &c.target}) *t = torch::stable::to(*t, scalar_type(stored));
      Tensor weight = new_empty(c.input, {window_size}, dtype_of_storage<T>);
      auto* weights = static_cast<T*>(weight.mutable_data_ptr());
      const double centre = double(window_size / 2), per_variance = 1 / (sigma * sigma);
      double sum = 0;
      for (int64_t t = 0; t < window_size; t++)
        sum += std::exp(-0.5 * (double(t) - centre) * (double(t) - centre) * per_variance);
      Backend::each(window_size, 1, GaussianWeights<T>{weights, centre, per_variance, 1 / sum});
      with_floating_storage(stored, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        if constexpr (sizeof(T) == 8 ? std::is_same_v<S, double> : !std::is_same_v<S, double>)
          use(WindowRows<std::decay_t<T>, S, Backend::kStrip>{ImagePlanes<S>(c.input), ImagePlanes<S>(c.target),
                                                              c.shape[1], c.shape[2], c.shape[3], window_size, weights,
                                                              T(c1), T(c2)});
      });
    });
  }
  // How many items so many rows of windows make, and about how many numbers one of them touches.
  template <class Backend>
  static int64_t items(int64_t rows) {
    constexpr int64_t kRows = kRowsTogether<Backend::kStrip>;
    return (rows + kRows - 1) / kRows;
  }
  template <class Backend>
  int64_t cost(const Call& c, int64_t maps) const {
    return kRowsTogether<Backend::kStrip> * c.shape[3] * window_size * maps;
  }

  template <class Backend>
  Tensor value(const Inputs& tensors, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    Call c = parse(tensors);
    typename Backend::Guard guard(c.input);
    const DType out_dtype = result_dtype(name, dtype, c.dtype);
    const bool reduced = reduction != Reduction::none;
    Tensor out = new_empty(c.input, reduced ? Shape{} : Shape{c.shape[0]}, out_dtype);
    const int64_t all_rows = c.planes() * c.rows;
    Tensor of_rows = new_empty(c.input, {all_rows}, DType::float64);
    auto* sums = static_cast<double*>(of_rows.mutable_data_ptr());
    with_rows<Backend>(c, out_dtype, [&](auto rows) {
      using Rows = decltype(rows);
      using Body = DissimilaritySums<Rows>;
      const int64_t most = std::min(all_rows, c.planes_together() * c.rows), n = items<Backend>(most);
      Tensor memory = new_empty(c.input, {n * Body::needs(rows)}, dtype_of_storage<typename Rows::Compute>);
      auto* place = static_cast<typename Rows::Compute*>(memory.mutable_data_ptr());
      for (int64_t first = 0; first < all_rows; first += most) {
        const int64_t count = std::min(most, all_rows - first);
        Backend::teams(items<Backend>(count), cost<Backend>(c, Rows::kMoments), Body{rows, first, count, place, sums});
      }
    });
    if (reduced) {
      Backend::template total<1>(out, all_rows, 1, AddLoss{sums}, WriteLoss{operand_of(out), scale(c, reduction)});
    } else {
      Backend::teams(c.shape[0], c.shape[1] * c.rows,
                     CloseImages{sums, c.shape[1] * c.rows, scale(c, reduction), operand_of(out)});
    }
    return out;
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Inputs& tensors, std::optional<Reduction> reduction,
                        const std::vector<bool>& mask) const {
    Call c = parse(tensors);
    typename Backend::Guard guard(c.input);
    const bool reduced = reduction != Reduction::none;
    const DType grad_dtype = check_grad_output(name, grad_output, reduced ? Shape{} : Shape{c.shape[0]}, c.input);
    const Tensor like[2] = {c.input, c.target};
    for (int k = 0; k < 2; k++)
      if (mask[k]) check_differentiable(name, ArgumentName{args, k}, c.dtypes[k]);
    Grads<gradients> grads;
    if (!mask[0] && !mask[1]) return grads;
    with_rows<Backend>(c, grad_dtype, [&](auto rows) {
      using Rows = decltype(rows);
      using T = typename Rows::Compute;
      using S = typename Rows::Storage;
      using Body = DissimilaritySlopes<Rows>;
      ImagePlanes<S> to[2];
      for (int k = 0; k < 2; k++) {
        if (!mask[k]) continue;
        grads[k] = empty_like(like[k], dtype_of_storage<S>);
        to[k] = ImagePlanes<S>(*grads[k]);
      }
      const int64_t planes = c.planes_together(), n = items<Backend>(planes * c.rows);
      Tensor memory = new_empty(c.input, {n * Body::needs(rows)}, dtype_of_storage<T>);
      Tensor maps = new_empty(c.input, {planes * c.rows * Body::kMaps * c.shape[3]}, dtype_of_storage<T>);
      auto *place = static_cast<T*>(memory.mutable_data_ptr()), *found = static_cast<T*>(maps.mutable_data_ptr());
      Operand of_image = operand_of(grad_output);
      if (reduced) of_image.stride[0] = 0;
      for (int64_t first = 0; first < c.planes(); first += planes) {
        const int64_t these = std::min(planes, c.planes() - first);
        Body slopes{rows, first * c.rows, these * c.rows, place, found};
        Backend::teams(items<Backend>(slopes.count), cost<Backend>(c, Rows::kMoments + Body::kMaps), slopes);
        DissimilarityGradient<Rows> gradient{rows, first, found, to[0], to[1], of_image, scale(c, reduction)};
        Backend::each(these * c.shape[2] * gradient.strips(), 2 * Rows::kStrip * window_size, gradient);
      }
    });
    for (int k = 0; k < 2; k++)
      if (mask[k]) grads[k] = torch::stable::to(*grads[k], scalar_type(c.dtypes[k]));
    return grads;
  }
  double scale(const Call& c, std::optional<Reduction> reduction) const {
    return 1 / c.windows() / (reduction == Reduction::mean ? double(c.shape[0]) : 1.0);
  }
};

using Ops = WrittenOps<SSIMLoss>;

}  // namespace lossreg
