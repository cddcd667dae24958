#pragma once
// The passes over rows of windows: the sum of their dissimilarity, and its gradient.
#include "windows.h"

namespace lossreg {

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

}  // namespace lossreg
