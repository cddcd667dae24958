#pragma once
// Losses over pairs of pixels that lie near each other. Nothing is unfolded: a pair is a pixel and a displacement, and
// each pixel gathers what its neighbours say about it, so that no sum depends on an order of threads.
#include "../formula.h"
#include "../written.h"

namespace lossreg {

// L pixels side by side in a row of an image: a vector on the CPU, one pixel on a GPU. Those of [first, last) lie in
// the image, the others read as score 0 and as an ignored label.
struct Span {
  int64_t n, h, w;
  int first, last;
};

// Scores (N, C, H, W) of any strides, labels (N, H, W). S is what is stored, T what is computed in.
template <class T, class S, int L>
struct Images {
  using Compute = T;
  using Storage = S;
  static constexpr int kLanes = L;
  const S* scores;
  const int64_t* labels;
  int64_t stride[4], channels, height, width, ignore_index;

  HD int64_t spans() const { return (width + L - 1) / L; }  // of one row
  HD Span span(int64_t n, int64_t h, int64_t w) const {
    Span s{n, h, w, 0, 0};
    if (h < 0 || h >= height) return s;
    s.first = int(w < 0 ? (-w < L ? -w : L) : 0);
    s.last = int(width - w < L ? (width - w > 0 ? width - w : 0) : L);
    return s;
  }
  HD Span span(int64_t i) const {
    int64_t row = i / spans();
    return span(row / height, row % height, (i - row * spans()) * L);
  }
  HD Span moved(const Span& s, int64_t dy, int64_t dx) const { return span(s.n, s.h + dy, s.w + dx); }

  HD bool direct(const Span& s) const { return s.first == 0 && s.last == L && stride[3] == 1; }
  // Channel c. Direct: no lane is outside, and they lie next to each other.
  template <bool Direct>
  HD void read(const Span& s, int64_t c, T (&x)[L]) const {
    int64_t at = s.n * stride[0] + c * stride[1] + s.h * stride[2] + s.w * stride[3];
    if constexpr (Direct) {
      for (int k = 0; k < L; k++) x[k] = widen<T>(scores[at + k]);
    } else {
      for (int k = 0; k < L; k++) x[k] = k >= s.first && k < s.last ? widen<T>(scores[at + k * stride[3]]) : T(0);
    }
  }
  HD void read_labels(const Span& s, int64_t (&y)[L]) const {
    const int64_t at = (s.n * height + s.h) * width + s.w;
    if (s.first == 0 && s.last == L)
      for (int k = 0; k < L; k++) y[k] = labels[at + k];
    else
      for (int k = 0; k < L; k++) y[k] = k >= s.first && k < s.last ? labels[at + k] : ignore_index;
  }
};

// The arguments of one call, checked against each other.
template <class F>
struct ImageCall {
  Tensor input, target, labels;
  DType dtype;
  Shape shape;

  explicit ImageCall(const Inputs& inputs)
      : input(required(F::name, F::args, 0, inputs[0])), target(required(F::name, F::args, 1, inputs[1])) {
    dtype = dtype_of(F::name, "input", input, true);
    DType labels_dtype = dtype_of(F::name, "target", target, false);
    expect_one_device(F::name, input, target);
    shape = shape_of(input);
    if (shape.size() != 4) fail(F::name, "input of shape (N, C, H, W), got ", shape_text(shape));
    if (shape[1] == 0) fail(F::name, "input of at least one class, got ", shape_text(shape));
    if (labels_dtype != DType::int64 && labels_dtype != DType::int32 && labels_dtype != DType::uint8)
      fail(F::name, "target of dtype int64, int32 or uint8, got ", name_of(labels_dtype));
    Shape expected{shape[0], shape[2], shape[3]};
    if (shape_of(target) != expected)
      fail(F::name, "target of shape ", shape_text(expected), " for input of shape ", shape_text(shape), ", got ",
           shape_text(shape_of(target)));
    labels = torch::stable::contiguous(torch::stable::to(target, ScalarType::Long));
  }

  int64_t pixels() const { return shape[0] * shape[2] * shape[3]; }
  void check_backward(const Tensor& grad_output, const Tensor& state, int64_t values,
                      const std::vector<bool>& mask) const {
    if (!shape_of(grad_output).empty())
      fail(F::name, "grad_output of shape [], got ", shape_text(shape_of(grad_output)));
    expect(mask.size() == 1, F::name, "one entry of output_mask a gradient", mask.size());
    if (state.scalar_type() != ScalarType::Double || shape_of(state) != Shape{values} || !state.is_contiguous())
      fail(F::name, "the float64 state of the forward pass, of shape ", shape_text({values}), ", got ",
           shape_text(shape_of(state)));
    expect_one_device(F::name, input, grad_output);
    expect_one_device(F::name, input, state);
  }

  // Calls use(images, number of spans) with images in the types of this call.
  template <int L, class Use>
  void with_images(DType other, int64_t ignore_index, Use use) const {
    in_compute_type(dtype, other, [&](auto zero) {
      with_floating_storage(dtype, [&](auto* tag) {
        using T = decltype(zero);
        using S = std::remove_pointer_t<decltype(tag)>;
        if constexpr (sizeof(S) <= sizeof(T)) {
          auto strides = input.strides();
          Images<T, S, L> images{static_cast<const S*>(input.const_data_ptr()),
                                 static_cast<const int64_t*>(labels.const_data_ptr()),
                                 {strides[0], strides[1], strides[2], strides[3]},
                                 shape[1],
                                 shape[2],
                                 shape[3],
                                 ignore_index};
          use(images, shape[0] * shape[2] * images.spans());
        }
      });
    });
  }
};

// The gradient in the scores, laid out in any way.
template <class S>
struct ScoreGradient {
  S* data;
  int64_t stride[4];

  explicit ScoreGradient(const Tensor& t) : data(static_cast<S*>(t.mutable_data_ptr())) {
    for (int d = 0; d < 4; d++) stride[d] = t.strides()[d];
  }
  template <class T, int L>
  HD void write(const Span& s, int64_t c, const T (&g)[L]) const {
    int64_t at = s.n * stride[0] + c * stride[1] + s.h * stride[2] + s.w * stride[3];
    if (s.last == L && stride[3] == 1)
      for (int k = 0; k < L; k++) data[at + k] = Narrow<S>::from(g[k]);
    else
      for (int k = 0; k < s.last; k++) data[at + k * stride[3]] = Narrow<S>::from(g[k]);
  }
};

// The sum over the number of terms; 0 where there are none.
struct MeanOrZero {
  Operand out;
  double* terms;
  double per_count;

  HD void operator()(const double (&sums)[2]) const {
    *terms = sums[1] * per_count;
    put(out, 0, *terms > 0 ? sums[0] / *terms : 0.0);
  }
};
inline Operand scalar_operand(const Tensor& t, DType dtype) {
  Operand o;
  o.data = const_cast<void*>(t.const_data_ptr());
  o.dtype = dtype;
  return o;
}
// grad_output over the number of terms.
template <class T>
HD T gradient_scale(const Operand& grad_output, const double* terms) {
  return T(*terms > 0 ? get<double>(grad_output, 0) / *terms : 0.0);
}

// How many windows of size k fit into n places and hold both a and b, which are less than k apart.
HD int64_t windows_holding(int64_t a, int64_t b, int64_t k, int64_t n) {
  int64_t low = a < b ? a : b, high = a < b ? b : a;
  int64_t first = high < k ? 0 : high - k + 1, last = low < n - k ? low : n - k;
  return last - first + 1;
}

// The pairs of one displacement: <x_a, x_b> of each lane, and in how many windows the pair is counted, 0 where a pixel
// of it is ignored or outside.
template <class Im>
struct Pairs {
  using T = typename Im::Compute;
  static constexpr int L = Im::kLanes;
  T dot[L];
  T sign[L];  // -1 for equal labels: -log of the probability of what the labels say is softplus(sign dot)
  int64_t count[L];

  HD Pairs(const Im& im, const Span& a, const int64_t (&label)[L], const Span& b, int64_t k) {
    if (im.direct(a) && im.direct(b)) find_dot<true>(im, a, b);
    else find_dot<false>(im, a, b);
    int64_t other[L];
    im.read_labels(b, other);
    int64_t rows = windows_holding(a.h, b.h, k, im.height);
    for (int j = 0; j < L; j++) {
      sign[j] = label[j] == other[j] ? T(-1) : T(1);
      bool valid = label[j] != im.ignore_index && other[j] != im.ignore_index;
      count[j] = valid ? rows * windows_holding(a.w + j, b.w + j, k, im.width) : 0;
    }
  }
  template <bool Direct>
  HD void find_dot(const Im& im, const Span& a, const Span& b) {
    for (int j = 0; j < L; j++) dot[j] = T(0);
    for (int64_t c = 0; c < im.channels; c++) {
      T x[L], y[L];
      im.template read<Direct>(a, c, x);
      im.template read<Direct>(b, c, y);
      for (int j = 0; j < L; j++) dot[j] += x[j] * y[j];
    }
  }
};

// Both orders of a pair count the same, so that half of the displacements do.
template <class Im>
struct AffinitySum {
  using T = typename Im::Compute;
  static constexpr int L = Im::kLanes;
  Im im;
  int64_t k;

  HD void operator()(int64_t i, double (&sums)[2]) const {
    Span a = im.span(i);
    int64_t label[L];
    im.read_labels(a, label);
    T loss[L] = {};
    int64_t counted[L] = {};
    for (int64_t dy = 0; dy < k; dy++)
      for (int64_t dx = dy == 0 ? 0 : 1 - k; dx < k; dx++) {
        Span b = im.moved(a, dy, dx);
        if (b.first >= b.last) continue;
        Pairs<Im> pairs(im, a, label, b, k);
        int64_t orders = dy == 0 && dx == 0 ? 1 : 2;
        for (int j = 0; j < L; j++) {
          int64_t times = orders * pairs.count[j];
          T bce = softplus(pairs.sign[j] * pairs.dot[j]);
          loss[j] += times == 0 ? T(0) : T(times) * bce;
          counted[j] += times;
        }
      }
    for (int j = 0; j < L; j++) {
      sums[0] += double(loss[j]);
      sums[1] += double(counted[j]);
    }
  }
};

// Every pair holds a twice, once in each order; and so does that of a with itself.
template <class Im>
struct AffinityGrad {
  using T = typename Im::Compute;
  static constexpr int L = Im::kLanes;
  Im im;
  int64_t k;
  ScoreGradient<typename Im::Storage> grad;
  Operand grad_output;
  const double* terms;
  // The inner products are found anew for as many channels as are summed at a time.
  static constexpr int kChannels = L > 1 ? 128 : 16;

  HD void operator()(int64_t i) const {
    Span a = im.span(i);
    int64_t label[L];
    im.read_labels(a, label);
    T scale = T(2) * gradient_scale<T>(grad_output, terms);
    for (int64_t from = 0; from < im.channels; from += kChannels) {
      T sum[kChannels][L] = {};
      for (int64_t dy = 1 - k; dy < k; dy++)
        for (int64_t dx = 1 - k; dx < k; dx++) {
          Span b = im.moved(a, dy, dx);
          if (b.first >= b.last) continue;
          Pairs<Im> pairs(im, a, label, b, k);
          T slope[L];
          for (int j = 0; j < L; j++) {
            T s = pairs.sign[j];
            slope[j] = pairs.count[j] == 0 ? T(0) : T(pairs.count[j]) * scale * s * sigmoid(s * pairs.dot[j]);
          }
          if (im.direct(b)) add<true>(b, from, slope, sum);
          else add<false>(b, from, slope, sum);
        }
      for (int c = 0; c < kChannels && from + c < im.channels; c++) grad.write(a, from + c, sum[c]);
    }
  }
  template <bool Direct>
  HD void add(const Span& b, int64_t from, const T (&slope)[L], T (&sum)[kChannels][L]) const {
    for (int c = 0; c < kChannels && from + c < im.channels; c++) {
      T y[L];
      im.template read<Direct>(b, from + c, y);
      // an ignored pixel may hold anything
      for (int j = 0; j < L; j++) sum[c][j] += slope[j] == T(0) ? T(0) : slope[j] * y[j];
    }
  }
};

// After Yu et al., Context Prior for Scene Segmentation, arXiv 2004.01547, local: over every window that fits, the
// binary cross entropy of <x_a, x_b> against [y_a = y_b] for all ordered pairs (a, b) of the window. What a pair says
// is the same in every window, so each is taken once, times the number of windows that hold it.
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

  template <class Backend>
  Tensor value(const Inputs& inputs, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return std::get<0>(forward<Backend>(inputs, reduction, dtype));
  }
  // The state is the number of pairs.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    ImageCall<AffinityLoss> call(inputs);
    check_kernel_size(call.shape);
    typename Backend::Guard guard(call.input);
    DType out_dtype = dtype ? dtype_of(name, *dtype) : call.dtype;
    Tensor out = new_empty(call.input, {}, out_dtype), state = new_empty(call.input, {1}, DType::float64);
    MeanOrZero finish{scalar_operand(out, out_dtype), static_cast<double*>(state.mutable_data_ptr()), 1.0};
    call.with_images<Backend::kLanes>(out_dtype, ignore_index, [&](auto images, int64_t spans) {
      AffinitySum<decltype(images)> body{images, kernel_size};
      int64_t cost = Backend::kLanes * call.shape[1] * (2 * kernel_size - 1) * kernel_size;
      Backend::template total<2>(call.input, spans, cost, body, finish);
    });
    return {out, state};
  }
  template <class Backend>
  std::vector<Tensor> grad(const Tensor& grad_output, const Tensor& state, const Inputs& inputs,
                           std::optional<Reduction>, const std::vector<bool>& mask) const {
    ImageCall<AffinityLoss> call(inputs);
    check_kernel_size(call.shape);
    call.check_backward(grad_output, state, 1, mask);
    typename Backend::Guard guard(call.input);
    if (!mask[0]) return {};
    DType grad_dtype = dtype_of(name, "grad_output", grad_output, true);
    Tensor result = empty_like(call.input, call.dtype);
    call.with_images<Backend::kLanes>(grad_dtype, ignore_index, [&](auto images, int64_t spans) {
      using S = typename decltype(images)::Storage;
      AffinityGrad<decltype(images)> body{images, kernel_size, ScoreGradient<S>(result),
                                          scalar_operand(grad_output, grad_dtype),
                                          static_cast<const double*>(state.const_data_ptr())};
      int64_t cost = Backend::kLanes * call.shape[1] * (2 * kernel_size - 1) * (2 * kernel_size - 1);
      Backend::each(spans, cost, body);
    });
    return {result};
  }
};

// log-softmax of a span's pixels, from its log-sum-exp. That is float64, in two parts of T, because x - lse must keep the
// digits that x has where |x| is large.
template <class Im>
struct LogSoftmax {
  using T = typename Im::Compute;
  static constexpr int L = Im::kLanes;
  Span span;
  bool direct;
  T high[L], low[L];

  HD void set(const Im& im, const double* lse, const Span& s) {
    span = s;
    direct = im.direct(s);
    int64_t at = (s.n * im.height + s.h) * im.width + s.w;
    for (int j = 0; j < L; j++) {
      double v = j >= s.first && j < s.last ? lse[at + j] : 0.0;
      high[j] = T(v);
      low[j] = T(v - double(high[j]));
    }
  }
  HD void read(const Im& im, int64_t c, T (&l)[L]) const {
    if (direct) im.template read<true>(span, c, l);
    else im.template read<false>(span, c, l);
    for (int j = 0; j < L; j++) l[j] = (l[j] - high[j]) - low[j];
  }
};

template <class Im>
struct LogSumExp {
  using T = typename Im::Compute;
  static constexpr int L = Im::kLanes;
  Im im;
  double* lse;

  HD void operator()(int64_t i) const {
    Span s = im.span(i);
    if (im.direct(s)) find<true>(s);
    else find<false>(s);
  }
  template <bool Direct>
  HD void find(const Span& s) const {
    T x[L], max[L], sum[L];
    im.template read<Direct>(s, 0, max);
    for (int64_t c = 1; c < im.channels; c++) {
      im.template read<Direct>(s, c, x);
      for (int j = 0; j < L; j++) max[j] = x[j] > max[j] || x[j] != x[j] ? x[j] : max[j];
    }
    for (int j = 0; j < L; j++) sum[j] = T(0);
    for (int64_t c = 0; c < im.channels; c++) {
      im.template read<Direct>(s, c, x);
      for (int j = 0; j < L; j++) sum[j] += exp(x[j] - max[j]);
    }
    for (int j = 0; j < L; j++) sum[j] = log(sum[j]);
    int64_t at = (s.n * im.height + s.h) * im.width + s.w;
    for (int j = 0; j < s.last; j++) lse[at + j] = double(max[j]) + double(sum[j]);
  }
};

// Each pair of neighbours is met once, at its upper (left) pixel a, for both of its orders.
template <class F, class Im>
struct FieldSum {
  using T = typename Im::Compute;
  static constexpr int L = Im::kLanes, kPairs = 4;
  F f;
  Im im;
  const double* lse;

  HD void operator()(int64_t i, double (&sums)[2]) const {
    Span a = im.span(i);
    LogSoftmax<Im> self, other[kPairs];
    self.set(im, lse, a);
    for (int n = 0; n < kPairs; n++) other[n].set(im, lse, im.moved(a, n > 0, n > 0 ? n - 2 : 1));
    T of_a[kPairs][L] = {}, of_b[kPairs][L] = {};  // KL(p_a || p_b), KL(p_b || p_a)
    for (int64_t c = 0; c < im.channels; c++) {
      T la[L], pa[L];
      self.read(im, c, la);
      for (int j = 0; j < L; j++) pa[j] = exp(la[j]);
      for (int n = 0; n < kPairs; n++) {
        T lb[L];
        other[n].read(im, c, lb);
        for (int j = 0; j < L; j++) {
          T lead = la[j] - lb[j];
          of_a[n][j] += pa[j] * lead;
          of_b[n][j] -= exp(lb[j]) * lead;
        }
      }
    }
    int64_t ya[L], yb[L];
    T loss[L] = {};
    im.read_labels(a, ya);
    for (int n = 0; n < kPairs; n++) {
      im.read_labels(other[n].span, yb);
      for (int j = 0; j < L; j++) {
        bool same = ya[j] == yb[j], valid = ya[j] != im.ignore_index && yb[j] != im.ignore_index;
        T both = f.value(of_a[n][j], same) + f.value(of_b[n][j], same);
        loss[j] += valid ? both : T(0);
      }
    }
    for (int j = 0; j < L; j++) {
      sums[0] += double(loss[j]);
      sums[1] += ya[j] != im.ignore_index ? 1.0 : 0.0;
    }
  }
};

// With D_b = KL(p_b || p_a), whose slopes in the scores of a are p_a - p_b, and D_a = KL(p_a || p_b), whose slopes
// are p_a (l_a - l_b - D_a).
template <class F, class Im>
struct FieldGrad {
  using T = typename Im::Compute;
  static constexpr int L = Im::kLanes, kNeighbours = 8;
  F f;
  Im im;
  const double* lse;
  ScoreGradient<typename Im::Storage> grad;
  Operand grad_output;
  const double* terms;

  HD void operator()(int64_t i) const {
    Span a = im.span(i);
    LogSoftmax<Im> self, other[kNeighbours];
    self.set(im, lse, a);
    for (int n = 0; n < kNeighbours; n++) {
      int place = n < 4 ? n : n + 1;  // of the 3 x 3, without the middle
      other[n].set(im, lse, im.moved(a, place / 3 - 1, place % 3 - 1));
    }
    T of_a[kNeighbours][L] = {}, of_b[kNeighbours][L] = {};
    for (int64_t c = 0; c < im.channels; c++) {
      T la[L], pa[L];
      self.read(im, c, la);
      for (int j = 0; j < L; j++) pa[j] = exp(la[j]);
      for (int n = 0; n < kNeighbours; n++) {
        T lb[L];
        other[n].read(im, c, lb);
        for (int j = 0; j < L; j++) {
          T lead = la[j] - lb[j];
          of_a[n][j] += pa[j] * lead;
          of_b[n][j] -= exp(lb[j]) * lead;
        }
      }
    }
    T slope_a[kNeighbours][L], slope_b[kNeighbours][L];
    T scale = gradient_scale<T>(grad_output, terms);
    int64_t ya[L], yb[L];
    im.read_labels(a, ya);
    for (int n = 0; n < kNeighbours; n++) {
      im.read_labels(other[n].span, yb);
      for (int j = 0; j < L; j++) {
        bool same = ya[j] == yb[j], valid = ya[j] != im.ignore_index && yb[j] != im.ignore_index;
        T sa = scale * f.slope(of_a[n][j], same), sb = scale * f.slope(of_b[n][j], same);
        slope_a[n][j] = valid ? sa : T(0);
        slope_b[n][j] = valid ? sb : T(0);
      }
    }
    for (int64_t c = 0; c < im.channels; c++) {
      T la[L], pa[L], sum[L] = {};
      self.read(im, c, la);
      for (int j = 0; j < L; j++) pa[j] = exp(la[j]);
      for (int n = 0; n < kNeighbours; n++) {
        T lb[L];
        other[n].read(im, c, lb);
        for (int j = 0; j < L; j++) {
          T through_a = slope_a[n][j] * (pa[j] * ((la[j] - lb[j]) - of_a[n][j]));
          T through_b = slope_b[n][j] * (pa[j] - exp(lb[j]));
          // an ignored pixel may hold anything
          sum[j] += (slope_a[n][j] == T(0) ? T(0) : through_a) + (slope_b[n][j] == T(0) ? T(0) : through_b);
        }
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

  template <class Backend>
  Tensor value(const Inputs& inputs, std::optional<Reduction> reduction, std::optional<ScalarType> dtype) const {
    return std::get<0>(forward<Backend>(inputs, reduction, dtype));
  }
  // The state is the log-sum-exp of each pixel, and 8 times the number of valid ones.
  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    ImageCall<AffinityFieldLoss> call(inputs);
    typename Backend::Guard guard(call.input);
    DType out_dtype = dtype ? dtype_of(name, *dtype) : call.dtype;
    Tensor out = new_empty(call.input, {}, out_dtype);
    Tensor state = new_empty(call.input, {call.pixels() + 1}, DType::float64);
    auto* lse = static_cast<double*>(state.mutable_data_ptr());
    MeanOrZero finish{scalar_operand(out, out_dtype), lse + call.pixels(), 8.0};
    call.with_images<Backend::kLanes>(out_dtype, ignore_index, [&](auto images, int64_t spans) {
      using Im = decltype(images);
      int64_t cost = Backend::kLanes * call.shape[1];
      Backend::each(spans, 4 * cost, LogSumExp<Im>{images, lse});
      FieldSum<AffinityFieldLoss, Im> body{*this, images, lse};
      Backend::template total<2>(call.input, spans, 16 * cost, body, finish);
    });
    return {out, state};
  }
  template <class Backend>
  std::vector<Tensor> grad(const Tensor& grad_output, const Tensor& state, const Inputs& inputs,
                           std::optional<Reduction>, const std::vector<bool>& mask) const {
    ImageCall<AffinityFieldLoss> call(inputs);
    call.check_backward(grad_output, state, call.pixels() + 1, mask);
    typename Backend::Guard guard(call.input);
    if (!mask[0]) return {};
    DType grad_dtype = dtype_of(name, "grad_output", grad_output, true);
    Tensor result = empty_like(call.input, call.dtype);
    auto* lse = static_cast<const double*>(state.const_data_ptr());
    call.with_images<Backend::kLanes>(grad_dtype, ignore_index, [&](auto images, int64_t spans) {
      using Im = decltype(images);
      FieldGrad<AffinityFieldLoss, Im> body{*this,
                                            images,
                                            lse,
                                            ScoreGradient<typename Im::Storage>(result),
                                            scalar_operand(grad_output, grad_dtype),
                                            lse + call.pixels()};
      Backend::each(spans, 64 * Backend::kLanes * call.shape[1], body);
    });
    return {result};
  }
};

using Ops = WrittenOps<AffinityLoss, AffinityFieldLoss>;

}  // namespace lossreg
