#pragma once
// Losses over pairs of pixels that lie near each other. Nothing is unfolded: a pair is a pixel and a displacement, and
// each pixel gathers what its neighbours say about it, so that no sum depends on an order of threads.
#include "../base/log_sum_exp.h"
#include "shared/images.h"

namespace lossreg {

// Writes the mean of the terms, which is 0 if there are none, and how many there are.
struct MeanOrZero {
  Operand out;
  double* terms;
  double per_count;

  HD void operator()(const double (&sums)[2]) const {
    *terms = sums[1] * per_count;
    put(out, 0, *terms > 0 ? sums[0] / *terms : 0.0);
  }
};
// grad_output divided by the number of terms.
template <class T>
HD T gradient_scale(const Operand& grad_output, const double* terms) {
  return T(*terms > 0 ? get<double>(grad_output, 0) / *terms : 0.0);
}

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

// After Yu et al., Context Prior for Scene Segmentation, arXiv 2004.01547, local: over every window that fits, the
// binary cross entropy of <x_a, x_b> against [y_a = y_b] for all ordered pairs (a, b) of the window. A pair has the
// same loss in every window, so each is visited once, and its loss counts as often as there are windows that hold it.
struct AffinityLoss {
  static constexpr auto name = "affinity_loss";
  static constexpr auto args = "Tensor input, Tensor target, int kernel_size=3, int ignore_index=-100";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool loss = true, keeps_state = true;
  int64_t kernel_size, ignore_index;

  static AffinityLoss make(int64_t kernel_size, int64_t ignore_index) {
    expect(kernel_size >= 1 && kernel_size % 2 == 1, name, "an odd kernel_size of at least 1", kernel_size);
    return {kernel_size, ignore_index};
  }
  void check_kernel_size(const Shape& shape) const {
    if (kernel_size > std::min(shape[2], shape[3]))
      fail(name, "kernel_size of at most the height and the width of input, ", shape_text({shape[2], shape[3]}),
           ", got ", kernel_size);
  }

  // The state is the number of pairs.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    ImageCall<AffinityLoss> call(inputs);
    check_kernel_size(call.shape);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.dtype);
    Tensor out = new_empty(call.input, {}, out_dtype), state = new_empty(call.input, {1}, DType::float64);
    MeanOrZero finish{operand_of(out), static_cast<double*>(state.mutable_data_ptr()), 1.0};
    call.with_images<Backend::kStrip>(out_dtype, ignore_index, [&](auto images, int64_t strips) {
      AffinitySum<decltype(images)> body{images, kernel_size};
      int64_t cost = Backend::kStrip * call.shape[1] * (2 * kernel_size - 1) * kernel_size;
      Backend::template total<2>(call.input, strips, cost, body, finish);
    });
    return {out, state};
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& inputs, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    ImageCall<AffinityLoss> call(inputs);
    check_kernel_size(call.shape);
    DType grad_dtype = call.check_grad(grad_output, state, 1);
    typename Backend::Guard guard(call.input);
    if (!mask[0]) return {};
    Tensor result = empty_like(call.input, call.dtype);
    call.with_images<Backend::kStrip>(grad_dtype, ignore_index, [&](auto images, int64_t strips) {
      using S = typename decltype(images)::Storage;
      AffinityGrad<decltype(images)> body{images, kernel_size, ScoreGradient<S>(result), operand_of(grad_output),
                                          static_cast<const double*>(state.const_data_ptr())};
      int64_t cost = Backend::kStrip * call.shape[1] * (2 * kernel_size - 1) * (2 * kernel_size - 1);
      Backend::each(strips, cost, body);
    });
    return {result};
  }
};

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

// Ke et al., Adaptive Affinity Fields for Semantic Segmentation, arXiv 1803.10335, with neighbours of distance 1.
struct AffinityFieldLoss {
  static constexpr auto name = "affinity_field_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float kl_margin=3.0, float lambda_edge=1.0, float lambda_not_edge=1.0, "
      "int ignore_index=-100";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool loss = true, keeps_state = true;
  double kl_margin, lambda_edge, lambda_not_edge;
  int64_t ignore_index;

  static AffinityFieldLoss make(double kl_margin, double lambda_edge, double lambda_not_edge, int64_t ignore_index) {
    expect(kl_margin >= 0, name, "kl_margin >= 0", kl_margin);
    expect(lambda_edge >= 0, name, "lambda_edge >= 0", lambda_edge);
    expect(lambda_not_edge >= 0, name, "lambda_not_edge >= 0", lambda_not_edge);
    return {kl_margin, lambda_edge, lambda_not_edge, ignore_index};
  }

  // Of one pair with the divergence d.
  template <class T>
  HD T value(T d, bool same) const {
    return same ? T(lambda_edge) * d : T(lambda_not_edge) * relu(T(kl_margin) - d);
  }
  template <class T>
  HD T slope(T d, bool same) const {
    T gap = T(kl_margin) - d;
    T step = gap > T(0) ? T(1) : (gap < T(0) ? T(0) : T(0.5));  // as torch.maximum(gap, 0)
    return same ? T(lambda_edge) : -T(lambda_not_edge) * step;
  }

  // The state is the log-sum-exp of each pixel, and 8 times the number of valid ones.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    ImageCall<AffinityFieldLoss> call(inputs);
    typename Backend::Guard guard(call.input);
    DType out_dtype = result_dtype(name, dtype, call.dtype);
    Tensor out = new_empty(call.input, {}, out_dtype);
    Tensor state = new_empty(call.input, {call.pixels() + 1}, DType::float64);
    auto* lse = static_cast<double*>(state.mutable_data_ptr());
    MeanOrZero finish{operand_of(out), lse + call.pixels(), 8.0};
    call.with_images<Backend::kStrip>(out_dtype, ignore_index, [&](auto images, int64_t strips) {
      using Im = decltype(images);
      int64_t cost = Backend::kStrip * call.shape[1];
      Backend::each(strips, 4 * cost, LogSumExpOfPixels<Im>{images, lse});
      FieldSum<AffinityFieldLoss, Im> body{*this, images, lse};
      Backend::template total<2>(call.input, strips, 16 * cost, body, finish);
    });
    return {out, state};
  }
  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, const Inputs& inputs, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    ImageCall<AffinityFieldLoss> call(inputs);
    DType grad_dtype = call.check_grad(grad_output, state, call.pixels() + 1);
    typename Backend::Guard guard(call.input);
    if (!mask[0]) return {};
    Tensor result = empty_like(call.input, call.dtype);
    auto* lse = static_cast<const double*>(state.const_data_ptr());
    call.with_images<Backend::kStrip>(grad_dtype, ignore_index, [&](auto images, int64_t strips) {
      using Im = decltype(images);
      FieldGrad<AffinityFieldLoss, Im> body{*this,
                                            images,
                                            lse,
                                            ScoreGradient<typename Im::Storage>(result),
                                            operand_of(grad_output),
                                            lse + call.pixels()};
      Backend::each(strips, 64 * Backend::kStrip * call.shape[1], body);
    });
    return {result};
  }
};

using Ops = WrittenOps<AffinityLoss, AffinityFieldLoss>;

}  // namespace lossreg
