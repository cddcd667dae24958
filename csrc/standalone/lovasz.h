#pragma once
// The Lovasz extensions of the Jaccard loss (arXiv 1705.08790). The errors of a region's pixels are sorted in
// descending order. The loss is their inner product with the steps that the Jaccard loss takes while the pixels are
// counted as wrong one after the other, in that order. As long as no two errors change places the steps are constants,
// so they are the gradient in the errors. The state holds them by pixel, with the sign of the error's own slope.
//
// A plane is the pixels of one region, looked at for one class. A few planes are sorted at a time, so that the memory
// needed beside the state is that of a few planes: for each pixel of a plane two keys, a 64-bit place and a byte.
#include "../skeletons/regionwise/call.h"
#include "../skeletons/standalone.h"

namespace lossreg {

// The planes that are sorted at the time; and of all planes the sums over each of the `chunks` pieces of their order.
template <class T>
struct SortedPlanes {
  using Bits = typename Key<T>::Bits;
  int64_t first, classes, pixels, chunk, chunks;
  const int32_t* label;  // of every region's pixels
  const Bits* key;       // sorted; what follows is in that order too
  const int64_t* place;  // of the pixel in its plane
  uint8_t* hit;          // is its label the plane's class?
  int64_t* hits;         // sums, one a chunk of each of all planes
  double* dots;
  T* gradient;  // of all planes, in the errors, by place
  bool present_only;
};

struct Chunk {
  int64_t plane, index, begin, end;
  template <class T>
  HD Chunk(const SortedPlanes<T>& s, int64_t item) : plane(item / s.chunks), index(item % s.chunks) {
    begin = index * s.chunk;
    end = begin + s.chunk < s.pixels ? begin + s.chunk : s.pixels;
  }
};

template <class T>
struct CountHits : SortedPlanes<T> {
  template <class Team>
  HD void operator()(int64_t item, const Team& team) const {
    Chunk c(*this, item);
    int64_t plane = this->first + c.plane, of_class = plane % this->classes, count = 0;
    const int32_t* label = this->label + plane / this->classes * this->pixels;
    for (int64_t k = c.begin + team.rank(); k < c.end; k += team.size()) {
      int64_t at = c.plane * this->pixels + k;
      bool hit = label[this->place[at]] == of_class;
      this->hit[at] = hit;
      count += hit;
    }
    count = team.sum(count);
    if (team.rank() == 0) this->hits[plane * this->chunks + c.index] = count;
  }
};

// After k pixels, h of them hits, of H in all: the Jaccard loss is 1 - (H - h) / (H + k - h), and 0 where k = 0. Its
// steps are written out: as differences they would lose their digits.
template <class T>
struct TakeSteps : SortedPlanes<T> {
  template <class Team>
  HD void operator()(int64_t item, const Team& team) const {
    Chunk c(*this, item);
    int64_t plane = this->first + c.plane, before = 0, all = 0;
    const int64_t* hits = this->hits + plane * this->chunks;
    for (int64_t j = team.rank(); j < this->chunks; j += team.size()) {
      all += hits[j];
      before += j < c.index ? hits[j] : 0;
    }
    all = team.sum(all);
    before = team.sum(before);

    const uint8_t* hit = this->hit + c.plane * this->pixels;
    const auto* key = this->key + c.plane * this->pixels;
    const int64_t* place = this->place + c.plane * this->pixels;
    T* gradient = this->gradient + plane * this->pixels;
    double total = 0;
    bool absent = all == 0 && this->present_only;
    // Neighbouring threads take neighbouring pixels. All of them come to each turn, since they count hits together.
    for (int64_t first = c.begin; first < c.end; first += team.size()) {
      int64_t k = first + team.rank();
      bool inside = k < c.end, is_hit = inside && hit[k];
      int32_t hits_here;
      const int64_t h = before + team.before(int32_t(is_hit), hits_here);
      before += hits_here;
      if (!inside) continue;
      T rest = T(all - h), joined = T(all + k - h);
      T step = (is_hit ? T(1) : rest) / (is_hit ? joined : joined * (joined + T(1)));
      step = joined == T(0) ? T(1) : step;
      T error = key[k] == Key<T>::ignored ? T(0) : Key<T>::error(key[k]);
      if (absent && error == error) step = T(0);
      total += double(error) * double(step);
      // the slope of abs and of relu is 0 at 0
      T slope = error == T(0) ? T(0) : is_hit ? -step : step;
      gradient[place[k]] = error == error ? slope : error;
    }
    total = team.sum(total);
    if (team.rank() == 0) this->dots[plane * this->chunks + c.index] = total;
  }
};

// The loss of a region, which is the mean over its classes, and the factor that this gives the gradient.
template <class T>
struct CloseLovasz {
  const int64_t* hits;
  const double* dots;
  int64_t classes, chunks;
  bool present_only;
  double* losses;
  T* factors;
  template <class Team>
  HD void operator()(int64_t region, const Team& team) const {
    double loss = 0, count = 0;
    for (int64_t c = team.rank(); c < classes; c += team.size()) {
      int64_t found = 0;
      for (int64_t j = 0; j < chunks; j++) {
        loss += dots[(region * classes + c) * chunks + j];
        found += hits[(region * classes + c) * chunks + j];
      }
      count += found > 0 || !present_only;
    }
    loss = team.sum(loss);
    count = team.sum(count);
    if (team.rank() != 0) return;
    losses[region] = count > 0 ? loss / count : loss;
    factors[region] = T(count > 0 ? 1 / count : 0);
  }
};
// The factors of the state times the gradient of the loss, one a region.
template <class T>
struct LovaszFactors {
  const T* factors;
  Operand grad;
  double scale;
  HD double factor(int64_t) const { return get<double>(grad, 0) * scale; }
  HD T operator()(double factor, int64_t i) const { return T(double(factors[i]) * factor); }
};
// The gradient of the loss times the state.
struct ScaledProduct {
  double scale;
  template <class T>
  HD void operator()(const T (&x)[2], T (&y)[1]) const {
    y[0] = x[0] * T(scale) * x[1];
  }
};

// What both ops share. Op has name, args, softmax; batch(), present_only().
template <class Op>
struct Lovasz {
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool loss = true, keeps_state = true;
  int64_t ignore_index;

  const Op& op() const { return static_cast<const Op&>(*this); }
  RegionCall call(const Inputs& inputs) const { return {Op::name, Op::args, inputs, Op::softmax, false}; }
  int64_t regions(const RegionCall& call) const { return op().batch() ? 1 : call.samples(); }
  // A mean over regions; over none it is 0, as over no valid pixel.
  double scale(const RegionCall& call) const { return regions(call) ? 1.0 / double(regions(call)) : 0.0; }
  // The gradient in the errors of every plane, and a factor a region.
  static int64_t elements(const RegionCall& call) { return element_count(Op::name, call.shape); }
  Shape state_shape(const RegionCall& call) const { return {elements(call) + regions(call)}; }

  template <class Backend>
  std::tuple<Tensor, Tensor> forward(const Inputs& inputs, std::optional<Reduction>,
                                     std::optional<ScalarType> dtype) const {
    RegionCall c = call(inputs);
    typename Backend::Guard guard(c.input);
    DType out_dtype = result_dtype(Op::name, dtype, c.result);
    Tensor out = new_empty(c.input, {}, out_dtype);
    std::optional<Tensor> state;
    in_compute_type(c.result, out_dtype, [&](auto zero) {
      using T = decltype(zero);
      state = new_empty(c.input, state_shape(c), dtype_of_storage<T>);
      run<Backend, T>(c, *state, out);
    });
    return {out, *state};
  }

  template <class Backend, class T>
  void run(const RegionCall& call, const Tensor& state, const Tensor& out) const {
    RegionPass<T> pass;
    pass.regions = call.regions(op().batch(), ignore_index);
    pass.divide(Backend::Regions::template chunk_pixels<T>(pass.regions));
    const int64_t pixels = pass.regions.pixels.numel, count = pass.regions.count, classes = pass.regions.classes;
    auto scratch = [&](int64_t n, DType dtype) { return new_empty(call.input, {n}, dtype); };

    Tensor label = scratch(count * pixels, DType::int32);
    Tensor statistics = scratch(Op::softmax ? 2 * count * pixels : 0, dtype_of_storage<T>);
    auto* max = static_cast<T*>(statistics.mutable_data_ptr());
    T* inverse = Op::softmax ? max + count * pixels : nullptr;
    auto* labels = static_cast<int32_t*>(label.mutable_data_ptr());
    Backend::Regions::template describe<T, Op::softmax>(Op::name, pass, max, inverse, labels);

    SortedPlanes<T> s{};
    s.classes = classes;
    s.pixels = pixels;
    // every chunk adds up the hits of those before it: so there are at most a thousand of them
    s.chunk = std::max<int64_t>(4096, (pixels + 1023) / 1024);
    s.chunks = (pixels + s.chunk - 1) / s.chunk;
    s.label = labels;
    s.gradient = static_cast<T*>(state.mutable_data_ptr());
    s.present_only = op().present_only();
    Tensor hits = scratch(count * classes * s.chunks, DType::int64);
    Tensor dots = scratch(count * classes * s.chunks, DType::float64);
    s.hits = static_cast<int64_t*>(hits.mutable_data_ptr());
    s.dots = static_cast<double*>(dots.mutable_data_ptr());

    const int64_t planes = pixels == 0 ? 0 : count * classes;
    const int64_t at_once = std::max<int64_t>(1, Backend::Regions::sorted_at_once / std::max<int64_t>(1, pixels));
    for (s.first = 0; s.first < planes; s.first += at_once) {
      int64_t n = std::min(at_once, planes - s.first);
      // a vector where there is one plane: torch's fast sort takes nothing else
      Tensor key = new_empty(call.input, n == 1 ? Shape{pixels} : Shape{n, pixels}, Key<T>::dtype);
      Backend::Regions::template keys<T, Op::softmax>(pass, s.first, n, max, inverse, labels,
                                                      static_cast<typename Key<T>::Bits*>(key.mutable_data_ptr()));
      auto sorted = call_aten<2>("aten::sort", "stable", key, std::optional<bool>(true), int64_t(-1), false);
      Tensor hit = scratch(n * pixels, DType::uint8);
      s.key = static_cast<const typename Key<T>::Bits*>(sorted[0].const_data_ptr());
      s.place = static_cast<const int64_t*>(sorted[1].const_data_ptr());
      s.hit = static_cast<uint8_t*>(hit.mutable_data_ptr());
      Backend::teams(n * s.chunks, std::min(pixels, s.chunk), CountHits<T>{s});
      Backend::teams(n * s.chunks, std::min(pixels, s.chunk), TakeSteps<T>{s});
    }

    Tensor losses = scratch(count, DType::float64);
    auto* of_region = static_cast<double*>(losses.mutable_data_ptr());
    CloseLovasz<T> close{s.hits, s.dots, classes, s.chunks, s.present_only, of_region, s.gradient + elements(call)};
    Backend::teams(count, classes * s.chunks, close);
    Backend::template total<1>(out, count, 1, AddLoss{of_region}, WriteLoss{operand_of(out), scale(call)});
  }

  template <class Backend>
  Grads<gradients> grad(const Tensor& grad_output, const Tensor& state, Inputs inputs, std::optional<Reduction>,
                        const std::vector<bool>& mask) const {
    RegionCall c = call(inputs);
    typename Backend::Guard guard(c.input);
    check_grad_output(Op::name, grad_output, {}, c.input);
    // of the type that the forward pass computed in, which the result's dtype decided too
    DType dtype = compute_dtype(c.result, state.scalar_type() == ScalarType::Double ? DType::float64 : DType::float32);
    check_state(Op::name, state, state_shape(c), dtype, c.input);
    if (!mask[0]) return {};
    Tensor grad_input = empty_like(c.input, c.input_dtype);
    in_compute_type(dtype, DType::float32,
                    [&](auto zero) { backward<Backend, decltype(zero)>(c, grad_output, state, grad_input); });
    return {grad_input};
  }

  template <class Backend, class T>
  void backward(const RegionCall& call, const Tensor& grad_output, const Tensor& state,
                const Tensor& grad_input) const {
    if constexpr (Op::softmax) {
      RegionPass<T> pass;
      pass.regions = call.regions(op().batch(), ignore_index, &grad_input);
      pass.divide(Backend::Regions::template chunk_pixels<T>(pass.regions));
      auto* gradient = static_cast<const T*>(state.const_data_ptr());
      LovaszFactors<T> factors{gradient + elements(call), operand_of(grad_output), scale(call)};
      Backend::Regions::template grad_softmax<T, true>(pass, factors, gradient);
    } else {
      // the planes are the input's elements, in their order
      View views[] = {view_of(grad_output, *known_dtype(grad_output.scalar_type()), call.shape),
                      contiguous_view(const_cast<void*>(state.const_data_ptr()), dtype_of_storage<T>, call.shape),
                      view_of(grad_input, call.input_dtype, call.shape)};
      Backend::Pointwise::template map<T, 2, 1>(make_iteration<3>(Op::name, call.shape, views),
                                                ScaledProduct{scale(call)});
    }
  }
};

struct LovaszSoftmaxLoss : Lovasz<LovaszSoftmaxLoss> {
  static constexpr auto name = "lovasz_softmax_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, str classes=\"present\", bool per_image=False, int ignore_index=-100";
  static constexpr bool softmax = true;
  bool present, per_image;

  static LovaszSoftmaxLoss make(const std::string& classes, bool per_image, int64_t ignore_index) {
    if (classes != "present" && classes != "all") fail(name, "classes \"present\" or \"all\", got \"", classes, "\"");
    return {{ignore_index}, classes == "present", per_image};
  }
  bool batch() const { return !per_image; }
  bool present_only() const { return present; }
};

// The pixels with the label 1 are the one class that there is, and the scores have no softmax.
struct LovaszHingeLoss : Lovasz<LovaszHingeLoss> {
  static constexpr auto name = "lovasz_hinge_loss";
  static constexpr auto args = "Tensor input, Tensor target, bool per_image=True, int ignore_index=-100";
  static constexpr bool softmax = false;
  bool per_image;

  static LovaszHingeLoss make(bool per_image, int64_t ignore_index) { return {{ignore_index}, per_image}; }
  bool batch() const { return !per_image; }
  bool present_only() const { return false; }
};

using Ops = WrittenOps<LovaszSoftmaxLoss, LovaszHingeLoss>;

}  // namespace lossreg
