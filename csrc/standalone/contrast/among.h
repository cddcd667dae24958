#pragma once
// Losses of one set of vectors x, of length 1 once they are normalised: each meets all others, and its loss is the
// log-sum-exp of the scores z_ij = x_i x_j / temperature over j != i, less the mean of those of its positives. The
// matrix of scores is symmetric, so that one product of slopes, for both places of each pair, is the whole gradient.
#include "pass.h"

namespace lossreg::contrast {

constexpr double kLeastNorm = 1e-12;

// x over its length; one shorter than kLeastNorm is divided by that, and one of zeros stays. Where there are scales, x
// is divided by a power of two alone, which takes nothing from its digits, and a scale is what is left to multiply by.
template <class S>
struct Normalise {
  S* x;
  int64_t features;
  double* inverse;  // what each vector is multiplied by; 0 for one of zeros, so that its gradient is 0, too
  float* scales;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    S* row = x + i * features;
    // squares of floats have no bounds in double
    const double square = team.sum(features, [=](int64_t k) {
      const double v = widen<double>(row[k]);
      return v * v;
    });
    const double length = sqrt(square), by = square == 0 ? 0.0 : 1.0 / at_least(length, kLeastNorm);
    const double power = bits<double>(bits<uint64_t>(length) & 0x7ff0000000000000u);
    const double at_once = !scales || square == 0 ? by : 1.0 / power;
    team.each(features, [=](int64_t k) { row[k] = Narrow<S>::from(widen<double>(row[k]) * at_once); });
    if (team.rank() > 0) return;
    inverse[i] = by;
    if (scales) scales[i] = float(power * by);
  }
};
// From a gradient in the normalised vectors to that in the vectors: its part along the vector goes, unless the length
// was none that counts.
template <class T, class S>
struct ThroughNorm {
  T* gradient;
  const S* x;
  int64_t features;
  const double* inverse;
  const float* scales;
  Operand factor;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    T* g = gradient + i * features;
    const S* row = x + i * features;
    const double by = inverse[i], scale = scales ? double(scales[i]) : 1.0;
    const double dot = team.sum(features, [=](int64_t k) { return widen<double>(row[k]) * double(g[k]); });
    const T along = T(by < 1.0 / kLeastNorm ? dot * scale * scale : 0.0), f = T(by * get<double>(factor, 0));
    team.each(features, [=](int64_t k) { g[k] = f * (g[k] - along * widen<T>(row[k])); });
  }
};

// The vectors of a call, those of several tensors one after the other, normalised. A gradient loses its part along its
// vector, and where the normalised vectors were rounded to bfloat16, that would be left in what remains: so factors of
// bfloat16 are what was given, and scales stand beside them.
template <class Backend>
struct Directions {
  Tensor vectors, inverse;       // (V, D) in the factors' dtype, (V)
  std::optional<Tensor> scales;  // (V)

  Directions(const std::vector<Tensor>& parts, DType dtype) {
    int64_t count = 0, features = parts[0].size(1);
    for (const Tensor& part : parts) count += part.size(0);
    vectors = new_empty(parts[0], {count, features}, Backend::Products::factor_dtype(dtype));
    inverse = new_empty(parts[0], {count}, DType::float64);
    if (Backend::Products::packs && *known_dtype(vectors.scalar_type()) == DType::bfloat16)
      scales = new_empty(parts[0], {count}, DType::float32);
    int64_t at = 0;
    for (const Tensor& part : parts) {
      Tensor to = rows_of(vectors, at, part.size(0));
      torch::stable::copy_(to, part);
      at += part.size(0);
    }
    with_factors([&](auto* x) {
      using S = std::remove_pointer_t<decltype(x)>;
      Backend::teams(count, features, Normalise<S>{x, features, inverses(), scale_data()});
    });
  }
  double* inverses() const { return static_cast<double*>(inverse.mutable_data_ptr()); }
  float* scale_data() const { return scales ? static_cast<float*>(scales->mutable_data_ptr()) : nullptr; }
  // Calls use(pointer to the vectors).
  template <class Use>
  void with_factors(Use use) const {
    with_floating_storage(*known_dtype(vectors.scalar_type()), [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if constexpr (sizeof(S) > 2 || is_narrow_factor<Backend, S>)
        use(static_cast<decltype(tag)>(vectors.mutable_data_ptr()));
    });
  }
};

// Which other vectors are a vector's positives: the other view of the same thing, of two views of each,
struct OtherView {
  int64_t things;
  struct Row {
    int64_t other;
    HD bool operator()(int64_t j) const { return j == other; }
  };
  HD Row row(int64_t i) const { return {i < things ? i + things : i - things}; }
};
// or all of the same label.
struct SameLabel {
  const int64_t* label;
  struct Row {
    const int64_t* label;
    int64_t own;
    HD bool operator()(int64_t j) const { return label[j] == own; }
  };
  HD Row row(int64_t i) const { return {label, label[i]}; }
};

// What is kept: the log-sum-exp of each vector, its positives' share of 1, which is 0 if it has none, and how many
// vectors have any.
template <class T>
struct Anchors {
  LogSumExps<T> all;
  T *share, *count;

  Anchors(const Tensor& state, int64_t vectors) {
    T* data = static_cast<T*>(const_cast<void*>(state.const_data_ptr()));
    all = {data, data + vectors};
    share = data + 2 * vectors;
    count = data + 3 * vectors;
  }
  static int64_t size(int64_t vectors) { return 3 * vectors + 1; }
};

template <class T, class Positives, int L>
struct AmongRows {
  ChunkProducts<T> of;
  Positives positives;
  double scale;
  Anchors<T> kept;
  double* loss;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    const T s = T(scale);
    const int64_t own = of.first + i;
    const auto is_positive = positives.row(own);
    Lanes<T, L> lanes;
    T sum[L] = {}, count[L] = {};
    each_tile<L>(of.columns, team, [&](int64_t at, int n) {
      const T* g = of.at(i, at);
      for (int j = 0; j < n; j++) {
        const bool self = at + j == own, positive = is_positive(at + j) && !self;
        const T z = s * g[j];
        add_exponentials<1>(lanes.max[j], lanes.sum[j], {self ? -T(INFINITY) : z});
        sum[j] += positive ? z : T(0);
        count[j] += positive ? T(1) : T(0);
      }
    });
    const LogSumExp<T> all = of_team(lanes.merged(), team);
    const double scores = team.sum(lane_sum(sum)), many = team.sum(lane_sum(count));
    if (team.rank() > 0) return;
    kept.all.put(own, all);
    kept.share[own] = T(many > 0 ? 1.0 / many : 0.0);
    loss[own] = many > 0 ? kept.all.above(own, scores / many) : 0.0;
  }
};
template <class T>
struct AddAnchors {
  const double* loss;
  const T* share;
  HD void operator()(int64_t i, double (&sums)[2]) const {
    sums[0] += loss[i];
    sums[1] += share[i] > T(0) ? 1.0 : 0.0;
  }
};
template <class T>
struct FinishAnchors {
  Operand result;
  T* count;
  double of_none;
  HD void operator()(const double (&sums)[2]) const {
    put(result, 0, sums[1] > 0 ? sums[0] / sums[1] : of_none);
    *count = T(sums[1]);
  }
};

// The slope of z_ij and that of z_ji.
template <class T, class S, class Positives, int L>
struct AmongSlopes {
  ChunkSlopes<T, S> of;
  Positives positives;
  double scale;
  Anchors<T> kept;

  template <class Team>
  HD void operator()(int64_t i, const Team& team) const {
    const T s = T(scale);
    const int64_t own = of.first + i;
    const auto is_positive = positives.row(own);
    const T max = kept.all.max[own], log = kept.all.log[own], share = kept.share[own];
    const T counts = share > T(0) ? T(1) : T(0);
    each_tile<L>(of.columns, team, [&](int64_t at, int n) {
      const T* g = of.at(i, at);
      T slope[L];
      for (int j = 0; j < n; j++) {
        const T z = s * g[j], other = kept.share[at + j], other_counts = other > T(0) ? T(1) : T(0);
        const T both = counts * exp_term((z - max) - log) + other_counts * kept.all.share(at + j, z);
        const T x = both - (is_positive(at + j) ? share + other : T(0));
        slope[j] = at + j == own ? T(0) : x;
      }
      of.put(i, at, n, slope);
    });
  }
};

inline double checked_temperature(const char* op, double temperature) {
  expect(temperature > 0 && temperature < INFINITY, op, "finite temperature > 0", temperature);
  return temperature;
}

// The mean over the vectors that have positives, `of_none` where none has, and the state.
template <class Backend, class Positives>
std::tuple<Tensor, Tensor> among_value(const char* op, const std::vector<Tensor>& parts, const Positives& positives,
                                       double temperature, double of_none, DType dtype, DType out_dtype) {
  Directions<Backend> x(parts, dtype);
  int64_t count = x.vectors.size(0);
  Tensor result = new_empty(x.vectors, {}, out_dtype), losses = new_empty(x.vectors, {count}, DType::float64);
  Tensor state = new_empty(x.vectors, {Anchors<float>::size(count)}, compute_dtype(dtype));
  auto* loss = static_cast<double*>(losses.mutable_data_ptr());
  Pass<Backend> pass(op, x.vectors, x.vectors, false, x.scale_data());
  pass.each([&](const Chunk& c) {
    with_products(c, [&](auto products) {
      using T = typename decltype(products)::Compute;
      AmongRows<T, Positives, kClassStrip<Backend>> body{products, positives, 1.0 / temperature,
                                                         Anchors<T>(state, count), loss};
      Backend::teams(c.count, count, body);
    });
  });
  in_compute_type(dtype, dtype, [&](auto zero) {
    using T = decltype(zero);
    Anchors<T> kept(state, count);
    Backend::template total<2>(losses, count, 1, AddAnchors<T>{loss, kept.share},
                               FinishAnchors<T>{operand_of(result), kept.count, of_none});
  });
  return {result, state};
}

// The gradient in the vectors of all parts, one after the other.
template <class Backend, class Positives>
Tensor among_gradient(const char* op, const Tensor& grad_output, const Tensor& state, const std::vector<Tensor>& parts,
                      const Positives& positives, double temperature, DType dtype) {
  Directions<Backend> x(parts, dtype);
  int64_t count = x.vectors.size(0), features = x.vectors.size(1);
  DType wide = compute_dtype(dtype);
  Tensor gradient = new_empty(x.vectors, {count, features}, wide);
  Pass<Backend> pass(op, x.vectors, x.vectors, true, x.scale_data());
  pass.each([&](const Chunk& c) {
    with_slopes<Backend>(c, true, [&](auto slopes) {
      using T = typename decltype(slopes)::Compute;
      using S = typename decltype(slopes)::Storage;
      AmongSlopes<T, S, Positives, kClassStrip<Backend>> body{slopes, positives, 1.0 / temperature,
                                                              Anchors<T>(state, count)};
      Backend::teams(c.count, count, body);
    });
    pass.rows_gradient(c, gradient);
  });
  Tensor anchors = strided(state, {}, {}, state.numel() - 1);
  Tensor factor = factor_of<Backend>(x.vectors, wide, operand_of(grad_output), {}, temperature, operand_of(anchors));
  in_compute_type(wide, wide, [&](auto zero) {
    using T = std::decay_t<decltype(zero)>;
    x.with_factors([&](auto* vectors) {
      using S = std::remove_pointer_t<decltype(vectors)>;
      if constexpr (sizeof(S) <= sizeof(T) && (sizeof(T) == 4 || sizeof(S) == 8)) {
        ThroughNorm<T, S> body{static_cast<T*>(gradient.mutable_data_ptr()),
                               vectors,
                               features,
                               x.inverses(),
                               x.scale_data(),
                               operand_of(factor)};
        Backend::teams(count, features, body);
      }
    });
  });
  return gradient;
}

}  // namespace lossreg::contrast
