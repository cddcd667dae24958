#pragma once
// The kernels of affinity_loss: the pairs of pixels that a window holds.
#include "../shared/images.h"
#include "mean.h"

namespace lossreg {

// How many windows of k places fit into n and hold both i and i + shift: k - |shift|, but for those that would begin
// before the first place or end behind the last. This is the number for place i + j of a strip, j < 2^31.
struct Windows {
  int all, before, past;

  HD Windows(int64_t i, int64_t shift, int64_t k, int64_t n) {
    int64_t low = shift < 0 ? i + shift : i, high = shift < 0 ? i : i + shift, most = INT32_MAX;
    all = int(k - (high - low));
    before = int(high < k - 1 ? k - 1 - high : 0);
    past = int(n - k - low < most ? n - k - low : most);
  }
  HD int at(int j) const { return all - (before > j ? before - j : 0) - (j > past ? j - past : 0); }
};

// The pairs of a strip's pixels with the pixels that are displaced from them by (dy, dx), (dy, dx + 1) and so on: kRun
// displacements, for which a row is read once.
template <class Im>
struct Pairs {
  using T = typename Im::Compute;
  static constexpr int L = Im::kStrip, kRun = 5, kWide = L + kRun - 1;  // a kernel of size 3 has runs of 5
  T dot[kRun][L];                                                       // <x_a, x_b>
  T sign[kRun][L];     // -1 for equal labels: the binary cross entropy is softplus(sign dot)
  int times[kRun][L];  // the windows that hold the pair; 0 where it has an ignored pixel, or one outside

  HD void find(const Im& im, const Strip& a, const int64_t (&label)[L], int64_t k, int64_t dy, int64_t dx) {
    for (int r = 0; r < kRun; r++)
      for (int j = 0; j < L; j++) dot[r][j] = T(0);
    auto first = im.template reader<L>(a.n, 0, a.h, a.w);
    auto second = im.template reader<kWide>(a.n, 0, a.h + dy, a.w + dx);
    for (int64_t c = 0; c < im.channels; c++) {
      T one[L], other[kWide];
      const T *x = first.next(one), *y = second.next(other);
      for (int j = 0; j < L; j++)
        for (int r = 0; r < kRun; r++) dot[r][j] += x[j] * y[j + r];
    }
    int64_t others[kWide];
    im.read_labels(a.n, a.h + dy, a.w + dx, others);
    int rows = Windows(a.h, dy, k, im.height).at(0);
    for (int r = 0; r < kRun; r++) {
      Windows columns(a.w, dx + r, k, im.width);
      bool in_window = dx + r < k;
      for (int j = 0; j < L; j++) {
        bool valid = label[j] != im.ignore_index && others[j + r] != im.ignore_index && in_window;
        sign[r][j] = label[j] == others[j + r] ? T(-1) : T(1);
        times[r][j] = valid ? rows * columns.at(j) : 0;
      }
    }
  }
};

// A pair adds the same in both of its orders. So only half of the displacements are visited, and count twice.
template <class Im>
struct AffinitySum {
  using T = typename Im::Compute;
  static constexpr int L = Im::kStrip;
  Im im;
  int64_t k;

  HD void operator()(int64_t i, double (&sums)[2]) const {
    Strip a = im.strip(i);
    int64_t label[L];
    im.read_labels(a.n, a.h, a.w, label);
    T loss[L] = {};
    int64_t counted = 0;
    Pairs<Im> pairs;
    for (int64_t dy = 0; dy < k && im.has_row(a.h + dy); dy++)
      for (int64_t dx = dy == 0 ? 0 : 1 - k; dx < k; dx += Pairs<Im>::kRun) {
        pairs.find(im, a, label, k, dy, dx);
        for (int r = 0; r < Pairs<Im>::kRun; r++) {
          int orders = dy == 0 && dx + r == 0 ? 1 : 2, count = 0;
          for (int j = 0; j < L; j++) {
            int times = orders * pairs.times[r][j];
            T bce = softplus(pairs.sign[r][j] * pairs.dot[r][j]);
            loss[j] += times == 0 ? T(0) : T(times) * bce;
            count += times;
          }
          counted += count;
        }
      }
    for (int j = 0; j < L; j++) sums[0] += double(loss[j]);
    sums[1] += double(counted);
  }
};

// The factor 2: every pair of a with another pixel is in the sum in both orders, and the product of a with itself
// depends on a twice.
template <class Im>
struct AffinityGrad {
  using T = typename Im::Compute;
  static constexpr int L = Im::kStrip, kRun = Pairs<Im>::kRun;
  Im im;
  int64_t k;
  ScoreGradient<typename Im::Storage> grad;
  Operand grad_output;
  const double* terms;
  // The gradients of so many channels are summed at once; for the next ones the inner products are computed again.
  static constexpr int kChannels = L > 1 ? 64 : 32;

  HD void operator()(int64_t i) const {
    Strip a = im.strip(i);
    int64_t label[L];
    im.read_labels(a.n, a.h, a.w, label);
    T scale = T(2) * gradient_scale<T>(grad_output, terms);
    Pairs<Im> pairs;
    for (int64_t from = 0; from < im.channels; from += kChannels) {
      T sum[kChannels][L] = {};
      for (int64_t dy = 1 - k; dy < k; dy++)
        for (int64_t dx = 1 - k; dx < k && im.has_row(a.h + dy); dx += kRun) {
          pairs.find(im, a, label, k, dy, dx);
          T slope[kRun][L];
          for (int r = 0; r < kRun; r++)
            for (int j = 0; j < L; j++) {
              T s = pairs.sign[r][j], g = scale * s * sigmoid(s * pairs.dot[r][j]);
              slope[r][j] = pairs.times[r][j] == 0 ? T(0) : T(pairs.times[r][j]) * g;
            }
          auto reader = im.template reader<Pairs<Im>::kWide>(a.n, from, a.h + dy, a.w + dx);

          LOSSREG_UNROLL
          for (int c = 0; c < kChannels; c++) {
            if (from + c >= im.channels) break;
            T buffer[Pairs<Im>::kWide];
            const T* y = reader.next(buffer);
            for (int j = 0; j < L; j++)
              for (int r = 0; r < kRun; r++) {
                T more = sum[c][j] + slope[r][j] * y[j + r];
                sum[c][j] = slope[r][j] == T(0) ? sum[c][j] : more;  // an ignored pixel may hold anything
              }
          }
        }

      LOSSREG_UNROLL
      for (int c = 0; c < kChannels; c++)
        if (from + c < im.channels) grad.write(a, from + c, sum[c]);
    }
  }
};

}  // namespace lossreg
