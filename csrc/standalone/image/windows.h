#pragma once
// Windows over two images: their moments, and how far two windows are from similar.
#include "../../skeletons/standalone.h"

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

}  // namespace lossreg
