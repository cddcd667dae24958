#pragma once
// The kernels of affinity_field_loss: the divergences between a pixel and its neighbours.
#include "../../base/log_sum_exp.h"
#include "../shared/images.h"
#include "mean.h"

namespace lossreg {

template <class Im>
struct LogSumExpOfPixels {
  using T = typename Im::Compute;
  static constexpr int L = Im::kStrip;
  Im im;
  double* lse;

  HD void operator()(int64_t i) const {
    Strip s = im.strip(i);
    T buffer[L], max[L], sum[L] = {};
    auto reader = im.template reader<L>(s.n, 0, s.h, s.w);
    const T* x = reader.next(buffer);
    for (int j = 0; j < L; j++) max[j] = x[j];
    for (int64_t c = 1; c < im.channels; c++) {
      x = reader.next(buffer);
      for (int j = 0; j < L; j++) max[j] = greater(max[j], x[j]);
    }
    reader = im.template reader<L>(s.n, 0, s.h, s.w);
    for (int64_t c = 0; c < im.channels; c++) {
      x = reader.next(buffer);
      for (int j = 0; j < L; j++) sum[j] += exp_negative(x[j] - max[j]);
    }
    for (int j = 0; j < L; j++) sum[j] = log_of_sum(sum[j], max[j]);
    double* out = lse + (s.n * im.height + s.h) * im.width + s.w;
    for (int j = 0; j < s.length; j++) out[j] = double(max[j]) + double(sum[j]);
  }
};

// A strip with its neighbours in the rows top, top + 1 ... below it: log-softmax and softmax, a channel at a time. What
// lies outside of the image has an ignored label.
template <class Im, int Rows>
struct Neighbourhood {
  using T = typename Im::Compute;
  static constexpr int L = Im::kStrip, kWide = L + 2;
  typename Im::template Reader<kWide> reader[Rows];
  // log-sum-exp in two parts of T, because x - lse must keep the digits that x has where |x| is large
  T high[Rows][kWide], low[Rows][kWide];
  int64_t label[Rows][kWide];
  T counts[Rows][kWide];  // 0 for an ignored pixel, whose scores may be anything and read as 0; else 1
  T log_p[Rows][kWide], p[Rows][kWide];

  // Reads of the pixels whatever is not their scores, and begins with channel 0.
  HD void begin(const Im& im, const double* lse, const Strip& a, int64_t top) {
    for (int r = 0; r < Rows; r++) {
      int64_t h = a.h + top + r;
      for (int j = 0; j < kWide; j++) high[r][j] = low[r][j] = T(0);
      im.read_labels(a.n, h, a.w - 1, label[r]);
      const double* row = lse + (a.n * im.height + h) * im.width + a.w - 1;
      auto split = [&](int j) {
        high[r][j] = T(row[j]);
        low[r][j] = T(row[j] - double(high[r][j]));
      };
      if (im.has_row(h)) typename Im::template Columns<kWide>(a.w - 1, im.width).each(split);
      for (int j = 0; j < kWide; j++) counts[r][j] = label[r][j] == im.ignore_index ? T(0) : T(1);
    }
    rewind(im, a, top);
  }
  HD void rewind(const Im& im, const Strip& a, int64_t top) {
    for (int r = 0; r < Rows; r++) reader[r] = im.template reader<kWide>(a.n, 0, a.h + top + r, a.w - 1);
  }
  // The next channel.
  HD void next() {
    for (int r = 0; r < Rows; r++) {
      T buffer[kWide];
      const T* x = reader[r].next(buffer);
      for (int j = 0; j < kWide; j++) {
        T l = (x[j] - high[r][j]) - low[r][j];
        l = counts[r][j] == T(0) ? T(0) : l;
        log_p[r][j] = l;
        p[r][j] = exp_negative(l);
      }
    }
  }
};

// The divergences between the pixels a of a strip and some of their 8 neighbours b: the last N in the order of memory,
// which lie in the last Rows rows of the 3 x 3 pixels around a.
template <class Im, int Rows, int N>
struct Divergences {
  using T = typename Im::Compute;
  static constexpr int L = Im::kStrip, kTop = 2 - Rows;
  Neighbourhood<Im, Rows> near;
  T of_a[N][L], of_b[N][L];  // KL(p_a || p_b), KL(p_b || p_a)

  HD void find(const Im& im, const double* lse, const Strip& a) {
    near.begin(im, lse, a, kTop);
    for (int n = 0; n < N; n++)
      for (int j = 0; j < L; j++) of_a[n][j] = of_b[n][j] = T(0);
    for (int64_t c = 0; c < im.channels; c++) {
      near.next();
      for (int n = 0; n < N; n++) {
        const T *la = center(near.log_p), *pa = center(near.p), *lb = other(near.log_p, n), *pb = other(near.p, n);
        T *da = of_a[n], *db = of_b[n];
        for (int j = 0; j < L; j++) {
          T lead = la[j] - lb[j];
          da[j] += pa[j] * lead;
          db[j] -= pb[j] * lead;
        }
      }
    }
  }
  // The strip's pixels in a plane of near, and their neighbours n.
  template <class X>
  HD static const X* center(const X (&plane)[Rows][L + 2]) {
    return at(plane, 4);
  }
  template <class X>
  HD static const X* other(const X (&plane)[Rows][L + 2], int n) {
    int place = 8 - N + n;
    return at(plane, place + (place >= 4));
  }
  template <class X>
  HD static const X* at(const X (&plane)[Rows][L + 2], int place) {
    return plane[place / 3 - (3 - Rows)] + place % 3;
  }
};

// Each pair of neighbours is visited once, from its upper or left pixel, and adds both of its orders.
template <class F, class Im>
struct FieldSum {
  using T = typename Im::Compute;
  static constexpr int L = Im::kStrip, kPairs = 4;
  F f;
  Im im;
  const double* lse;

  HD void operator()(int64_t i, double (&sums)[2]) const {
    Strip a = im.strip(i);
    Divergences<Im, 2, kPairs> d;
    d.find(im, lse, a);
    const int64_t* ya = d.center(d.near.label);
    T loss[L] = {};
    for (int n = 0; n < kPairs; n++) {
      const int64_t* yb = d.other(d.near.label, n);
      for (int j = 0; j < L; j++) {
        bool same = ya[j] == yb[j], valid = ya[j] != im.ignore_index && yb[j] != im.ignore_index;
        T both = f.value(d.of_a[n][j], same) + f.value(d.of_b[n][j], same);
        loss[j] += valid ? both : T(0);
      }
    }
    for (int j = 0; j < a.length; j++) {
      sums[0] += double(loss[j]);
      sums[1] += ya[j] != im.ignore_index ? 1.0 : 0.0;
    }
  }
};

// KL(p_b || p_a) has the slopes p_a - p_b in the scores of a, and D = KL(p_a || p_b) the slopes
// p_a (log p_a - log p_b - D).
template <class F, class Im>
struct FieldGrad {
  using T = typename Im::Compute;
  static constexpr int L = Im::kStrip, kNeighbours = 8;
  F f;
  Im im;
  const double* lse;
  ScoreGradient<typename Im::Storage> grad;
  Operand grad_output;
  const double* terms;

  HD void operator()(int64_t i) const {
    Strip a = im.strip(i);
    Divergences<Im, 3, kNeighbours> d;
    d.find(im, lse, a);
    const int64_t* ya = d.center(d.near.label);
    T slope_a[kNeighbours][L], slope_b[kNeighbours][L];
    T scale = gradient_scale<T>(grad_output, terms);
    for (int n = 0; n < kNeighbours; n++) {
      const int64_t* yb = d.other(d.near.label, n);
      for (int j = 0; j < L; j++) {
        bool same = ya[j] == yb[j], valid = ya[j] != im.ignore_index && yb[j] != im.ignore_index;
        T sa = scale * f.slope(d.of_a[n][j], same), sb = scale * f.slope(d.of_b[n][j], same);
        slope_a[n][j] = valid ? sa : T(0);
        slope_b[n][j] = valid ? sb : T(0);
      }
    }
    d.near.rewind(im, a, d.kTop);
    for (int64_t c = 0; c < im.channels; c++) {
      d.near.next();
      const T *la = d.center(d.near.log_p), *pa = d.center(d.near.p);
      T sum[L];
      for (int j = 0; j < L; j++) {
        T s = T(0);
        for (int n = 0; n < kNeighbours; n++) {
          T lb = d.other(d.near.log_p, n)[j], pb = d.other(d.near.p, n)[j];
          s += slope_a[n][j] * (pa[j] * ((la[j] - lb) - d.of_a[n][j])) + slope_b[n][j] * (pa[j] - pb);
        }
        sum[j] = s;
      }
      grad.write(a, c, sum);
    }
  }
};

}  // namespace lossreg
