#pragma once
// Losses of images against images.
#include "../skeletons/standalone.h"

namespace lossreg {

// Images (N, C, H, W) of any strides, which are stored as S; a plane is one channel of one image.
template <class S>
struct ImagePlanes {
  S* data = nullptr;
  int64_t stride[4] = {};

  ImagePlanes() = default;
  explicit ImagePlanes(const Tensor& t) : data(static_cast<S*>(const_cast<void*>(t.const_data_ptr()))) {
    std::copy_n(t.strides().begin(), 4, stride);
  }
  HD S* row(int64_t image, int64_t channel, int64_t h) const {
    return data + (image * stride[0] + channel * stride[1] + h * stride[2]);
  }
  // n neighbours in a row, from column w on.
  template <class T, int L>
  HD void load(const S* row, int64_t w, int n, T (&to)[L]) const {
    const int64_t step = stride[3];
    row += w * step;
    if (step == 1)
      for (int j = 0; j < n; j++) to[j] = widen<T>(row[j]);
    else
      for (int j = 0; j < n; j++) to[j] = widen<T>(row[j * step]);
  }
  template <class T, int L>
  HD void store(S* row, int64_t w, int n, const T (&from)[L]) const {
    for (int j = 0; j < n; j++) row[(w + j) * stride[3]] = Narrow<S>::from(from[j]);
  }
};

// Wang et al., Image quality assessment: from error visibility to structural similarity, 2004. The similarity of two
// windows is (1 - luminance) (1 - structure), with
//   luminance = (mean_x - mean_y)^2 / (mean_x^2 + mean_y^2 + c1)
//   structure = var(x - y) / (var x + var y + c2)
// which is the paper's product, written so that its difference from 1 keeps its digits where the windows are alike.
template <class T>
struct WindowMoments {
  T x, y, difference;              // means
  T var_x, var_y, var_difference;  // variances
};
// The derivatives of 1 - similarity in both means; and those in the variances, that of the difference, and less those
// of x and y, which are equal.
template <class T>
struct WindowSlopes {
  T x, y, var_difference, less_var;
};
template <class T>
struct Dissimilarity {
  T per_mean, per_variance, luminance, structure;

  HD Dissimilarity(const WindowMoments<T>& m, T c1, T c2) {
    const T means = m.x * m.x + m.y * m.y + c1, variances = m.var_x + m.var_y + c2;
    // without constants, windows of zeros are alike
    per_mean = inverse_or_0(means), per_variance = inverse_or_0(variances);
    luminance = quotient_or(T(0), m.difference * m.difference, means);
    structure = quotient_or(T(0), m.var_difference, variances);
  }
  HD T value() const { return luminance + structure - luminance * structure; }
  HD WindowSlopes<T> slopes(const WindowMoments<T>& m) const {
    const T step = T(2) * (T(1) - structure) * per_mean, of_variance = (T(1) - luminance) * per_variance;
    return {step * (m.difference - m.x * luminance), -step * (m.difference + m.y * luminance), of_variance,
            of_variance * structure};
  }
};

// Two images, and the windows over them. Moments are taken in two steps, first down each column of a row of windows and
// then along the row, each about its own mean: what is constant in an image costs no digits, and no variance is below
// 0. A row of windows has a memory of kMoments rows of the image's width for the first step.
template <class T, class S, int L>
struct WindowRows {
  using Compute = T;
  using Storage = S;
  static constexpr int kStrip = L;
  enum { kX, kY, kDifference, kVarX, kVarY, kVarDifference, kMoments };
  ImagePlanes<S> x, y;
  int64_t channels, height, width, window;
  const T* weight;  // of each place along a side of the window; their sum is 1
  T c1, c2;

  HD int64_t rows() const { return height - window + 1; }  // of windows, in a plane
  HD int64_t columns() const { return width - window + 1; }
  HD static int strip(int64_t w, int64_t end) { return L == 1 ? 1 : int(end - w < L ? end - w : L); }

  // The first step, of row i of windows.
  template <class Team>
  HD void down_columns(int64_t plane, int64_t i, T* moments, const Team& team) const {
    const int64_t image = plane / channels, channel = plane - image * channels;
    for (int64_t w = team.rank() * L; w < width; w += team.size() * L) {
      const int n = strip(w, width);
      T a[L], b[L], mean_x[L] = {}, mean_y[L] = {}, mean_d[L] = {}, var_x[L] = {}, var_y[L] = {}, var_d[L] = {};
      for (int64_t t = 0; t < window; t++) {
        const T g = weight[t];
        x.load(x.row(image, channel, i + t), w, n, a);
        y.load(y.row(image, channel, i + t), w, n, b);
        for (int j = 0; j < n; j++) {
          mean_x[j] += g * a[j];
          mean_y[j] += g * b[j];
          mean_d[j] += g * (a[j] - b[j]);
        }
      }
      for (int64_t t = 0; t < window; t++) {
        const T g = weight[t];
        x.load(x.row(image, channel, i + t), w, n, a);
        y.load(y.row(image, channel, i + t), w, n, b);
        for (int j = 0; j < n; j++) {
          const T dx = a[j] - mean_x[j], dy = b[j] - mean_y[j], dd = (a[j] - b[j]) - mean_d[j];
          var_x[j] += g * dx * dx;
          var_y[j] += g * dy * dy;
          var_d[j] += g * dd * dd;
        }
      }
      for (int j = 0; j < n; j++) {
        T* to = moments + w + j;
        to[kX * width] = mean_x[j];
        to[kY * width] = mean_y[j];
        to[kDifference * width] = mean_d[j];
        to[kVarX * width] = var_x[j];
        to[kVarY * width] = var_y[j];
        to[kVarDifference * width] = var_d[j];
      }
    }
  }
  // The second step, of the windows [w, w + n) of the row.
  HD void along_row(const T* moments, int64_t w, int n, WindowMoments<T> (&of)[L]) const {
    T mean[3][L] = {}, var[3][L] = {};
    for (int64_t t = 0; t < window; t++) {
      const T g = weight[t];
      for (int k = 0; k < 3; k++) {
        const T* from = moments + k * width + w + t;
        for (int j = 0; j < n; j++) mean[k][j] += g * from[j];
      }
    }
    for (int64_t t = 0; t < window; t++) {
      const T g = weight[t];
      for (int k = 0; k < 3; k++) {
        const T *from = moments + k * width + w + t, *inside = from + 3 * width;
        for (int j = 0; j < n; j++) {
          const T d = from[j] - mean[k][j];
          var[k][j] += g * (inside[j] + d * d);
        }
      }
    }
    for (int j = 0; j < n; j++) of[j] = {mean[0][j], mean[1][j], mean[2][j], var[0][j], var[1][j], var[2][j]};
  }
};

// Rows of windows that use the same memory, one after the other.
template <int L>
constexpr int64_t kRowsTogether = L == 1 ? 2 : 16;

// The sum of 1 - similarity over each row of windows.
template <class Rows>
struct DissimilaritySums {
  using T = typename Rows::Compute;
  Rows rows;
  int64_t first, count;  // the rows of a pass, counted over all planes
  T* memory;
  double* sums;

  HD static int64_t needs(const Rows& r) { return Rows::kMoments * r.width; }
  template <class Team>
  HD void operator()(int64_t item, const Team& team) const {
    constexpr int64_t kRows = kRowsTogether<Rows::kStrip>;
    T* moments = memory + item * needs(rows);
    const int64_t begin = item * kRows, end = begin + kRows < count ? begin + kRows : count;
    for (int64_t r = first + begin; r < first + end; r++) {
      const int64_t plane = r / rows.rows();
      rows.down_columns(plane, r - plane * rows.rows(), moments, team);
      team.sync();
      double sum = 0;
      for (int64_t w = team.rank() * Rows::kStrip; w < rows.columns(); w += team.size() * Rows::kStrip) {
        const int n = Rows::strip(w, rows.columns());
        WindowMoments<T> m[Rows::kStrip];
        rows.along_row(moments, w, n, m);
        T of_strip = T(0);
        for (int j = 0; j < n; j++) of_strip += Dissimilarity<T>(m[j], rows.c1, rows.c2).value();
        sum += double(of_strip);
      }
      sum = team.sum(sum);
      if (team.rank() == 0) sums[r] = sum;
      team.sync();  // before the memory is written again
    }
  }
};
// The loss of each image, from its rows' sums.
struct CloseImages {
  const double* sums;
  int64_t rows;  // of an image
  double scale;
  Operand losses;
  template <class Team>
  HD void operator()(int64_t image, const Team& team) const {
    const double* own = sums + image * rows;
    const double sum = team.sum(rows, [=](int64_t r) { return own[r]; });
    if (team.rank() == 0) put(losses, image * losses.stride[0], sum * scale);
  }
};

// The gradient by the adjoint filter: a pixel gathers the slopes of the windows that hold it, first along each row of
// windows and then down the column. With x' and y' the means of a column of a row of windows,
//   slope in x = sum of g (of_x - 2 less_var (x - mean_x) + 2 var_difference ((x - y) - mean_difference))
// splits into terms about x', which this pass sums along the row, and those from x' to x, which the last pass adds.
template <class Rows>
struct DissimilaritySlopes {
  using T = typename Rows::Compute;
  enum { kX, kY, kDifference, kOfX, kOfY, kVarDifference, kLessVar, kMaps };
  Rows rows;
  int64_t first, count;
  T* memory;
  T* maps;  // kMaps rows of the image's width for each row of windows of the pass

  // Along a row, the slopes lie between zeros: outside of the image there are no windows.
  HD static int64_t padded(const Rows& r) { return r.width + r.window - 1; }
  HD static int64_t needs(const Rows& r) { return Rows::kMoments * r.width + kMaps * padded(r); }
  template <class Team>
  HD void operator()(int64_t item, const Team& team) const {
    constexpr int64_t kRows = kRowsTogether<Rows::kStrip>;
    T *moments = memory + item * needs(rows), *slopes = moments + Rows::kMoments * rows.width;
    const int64_t margin = rows.window - 1, wide = padded(rows);
    for (int64_t k = team.rank(); k < kMaps * margin; k += team.size()) {
      T* row = slopes + k / margin * wide + k % margin;
      row[0] = row[margin + rows.columns()] = T(0);
    }
    const int64_t begin = item * kRows, end = begin + kRows < count ? begin + kRows : count;
    for (int64_t r = begin; r < end; r++) {
      const int64_t plane = (first + r) / rows.rows();
      rows.down_columns(plane, first + r - plane * rows.rows(), moments, team);
      team.sync();
      find_slopes(moments, slopes + margin, wide, team);
      team.sync();
      gather(moments, slopes, wide, maps + r * kMaps * rows.width, team);
      team.sync();  // before the memory is written again
    }
  }
  template <class Team>
  HD void find_slopes(const T* moments, T* slopes, int64_t wide, const Team& team) const {
    for (int64_t w = team.rank() * Rows::kStrip; w < rows.columns(); w += team.size() * Rows::kStrip) {
      const int n = Rows::strip(w, rows.columns());
      WindowMoments<T> m[Rows::kStrip];
      rows.along_row(moments, w, n, m);
      for (int j = 0; j < n; j++) {
        const WindowSlopes<T> g = Dissimilarity<T>(m[j], rows.c1, rows.c2).slopes(m[j]);
        T* to = slopes + w + j;
        to[kX * wide] = m[j].x;
        to[kY * wide] = m[j].y;
        to[kDifference * wide] = m[j].difference;
        to[kOfX * wide] = g.x;
        to[kOfY * wide] = g.y;
        to[kVarDifference * wide] = g.var_difference;
        to[kLessVar * wide] = g.less_var;
      }
    }
  }
  template <class Team>
  HD void gather(const T* moments, const T* slopes, int64_t wide, T* to, const Team& team) const {
    constexpr int L = Rows::kStrip;
    const int64_t width = rows.width, margin = rows.window - 1;
    for (int64_t w = team.rank() * L; w < width; w += team.size() * L) {
      const int n = Rows::strip(w, width);
      T x[L], y[L], d[L], of_x[L] = {}, of_y[L] = {}, of_d[L] = {}, less[L] = {};
      for (int j = 0; j < n; j++) {
        x[j] = moments[Rows::kX * width + w + j];
        y[j] = moments[Rows::kY * width + w + j];
        d[j] = moments[Rows::kDifference * width + w + j];
      }
      for (int64_t t = 0; t < rows.window; t++) {
        const T g = rows.weight[t];
        const T* from = slopes + margin + w - t;
        for (int j = 0; j < n; j++) {
          const T in_difference = from[kVarDifference * wide + j], in_var = from[kLessVar * wide + j];
          const T spread = in_difference * (d[j] - from[kDifference * wide + j]);
          of_x[j] += g * (from[kOfX * wide + j] + T(2) * (spread - in_var * (x[j] - from[kX * wide + j])));
          of_y[j] += g * (from[kOfY * wide + j] - T(2) * (spread + in_var * (y[j] - from[kY * wide + j])));
          of_d[j] += g * in_difference;
          less[j] += g * in_var;
        }
      }
      for (int j = 0; j < n; j++) {
        T* place = to + w + j;
        place[kX * width] = x[j];
        place[kY * width] = y[j];
        place[kDifference * width] = d[j];
        place[kOfX * width] = of_x[j];
        place[kOfY * width] = of_y[j];
        place[kVarDifference * width] = of_d[j];
        place[kLessVar * width] = less[j];
      }
    }
  }
};
// The last pass: down the columns, over the pixels of some planes.
template <class Rows>
struct DissimilarityGradient {
  using T = typename Rows::Compute;
  using S = typename Rows::Storage;
  using Slopes = DissimilaritySlopes<Rows>;
  Rows rows;
  int64_t first;  // plane
  const T* maps;  // of that plane's first row of windows, and on
  ImagePlanes<S> grad_x, grad_y;
  Operand grad_output;
  double scale;

  HD int64_t strips() const { return (rows.width + Rows::kStrip - 1) / Rows::kStrip; }  // of one row
  HD void operator()(int64_t i) const {
    constexpr int L = Rows::kStrip;
    const int64_t row = i / strips(), w = (i - row * strips()) * L;
    const int64_t plane = row / rows.height, h = row - plane * rows.height;
    const int64_t image = (first + plane) / rows.channels, channel = first + plane - image * rows.channels;
    const int64_t width = rows.width;
    const int n = Rows::strip(w, width);
    T x[L], y[L], of_x[L] = {}, of_y[L] = {};
    rows.x.load(rows.x.row(image, channel, h), w, n, x);
    rows.y.load(rows.y.row(image, channel, h), w, n, y);
    for (int64_t t = 0; t < rows.window; t++) {
      const int64_t of_windows = h - t;
      if (of_windows < 0 || of_windows >= rows.rows()) continue;
      const T g = rows.weight[t];
      const T* from = maps + (plane * rows.rows() + of_windows) * Slopes::kMaps * width + w;
      for (int j = 0; j < n; j++) {
        const T in_var = from[Slopes::kLessVar * width + j];
        const T spread =
            from[Slopes::kVarDifference * width + j] * ((x[j] - y[j]) - from[Slopes::kDifference * width + j]);
        of_x[j] +=
            g * (from[Slopes::kOfX * width + j] + T(2) * (spread - in_var * (x[j] - from[Slopes::kX * width + j])));
        of_y[j] +=
            g * (from[Slopes::kOfY * width + j] - T(2) * (spread + in_var * (y[j] - from[Slopes::kY * width + j])));
      }
    }
    const T step = T(get<double>(grad_output, image * grad_output.stride[0]) * scale);
    for (int j = 0; j < n; j++) of_x[j] *= step, of_y[j] *= step;
    if (grad_x.data) grad_x.store(grad_x.row(image, channel, h), w, n, of_x);
    if (grad_y.data) grad_y.store(grad_y.row(image, channel, h), w, n, of_y);
  }
};

// A normal density along a side of the window, whose sum is 1.
template <class T>
struct GaussianWeights {
  T* weight;
  double centre, per_variance, scale;
  HD void operator()(int64_t t) const {
    const double d = double(t) - centre;
    weight[t] = T(scale * exp(-0.5 * d * d * per_variance));
  }
};

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
