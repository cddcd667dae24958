#pragma once
// The pixels that a thread of the region kernels takes: where they are, their labels, and their numbers class by class.
#include "../../cuda/neighbours.h"
#include "../../cuda/reduce.h"
#include "call.h"

namespace lossreg::cuda {

// How many pixels a thread takes. Packed: neighbours, so many that the scores of each class are 16 bytes of memory on
// such a boundary, and likewise for every operand. Otherwise one, wherever it is: that serves odd sizes and any
// strides.
template <class S, bool Packed>
constexpr int pixels_a_thread() {
  if constexpr (Packed) return neighbours_in_16_bytes<S>();
  else return 1;
}
template <class S>
bool are_packed(const Regions& r) {
  constexpr int P = pixels_a_thread<S, true>();
  if (r.pixels.dims == 0 || r.pixels.size[0] % P != 0) return false;
  for (int k = 0; k < Regions::kRoles; k++) {
    const Operand& o = r.pixels.operand[k];
    if (k != Regions::kFlat && !o.data) continue;
    bool whole = o.stride[0] == 1 && reinterpret_cast<uintptr_t>(o.data) % 16 == 0;
    for (int d = 1; d < r.pixels.dims; d++) whole = whole && o.stride[d] % P == 0;
    whole = whole && r.region_stride[k] % P == 0;
    if (!whole || (r.classes > 1 && r.class_stride[k] % P != 0)) return false;
  }
  return true;
}

// The pixels of one thread.
template <class T, class S, bool Packed>
struct Pixels {
  using Number = T;
  static constexpr int P = pixels_a_thread<S, Packed>();
  static constexpr int K = P == 8 || sizeof(T) == 8 ? 2 : 4;                // classes read together
  using Pack = Neighbours<std::conditional_t<std::is_void_v<S>, T, S>, P>;  // the scores of one class
  const Regions& r;
  const int classes;
  int64_t place[Regions::kRoles];  // of the first one
  int32_t label[P];
  bool some_ignored = false;

  __device__ Pixels(const Regions& r, int64_t region, int64_t pixel) : r(r), classes(int(r.classes)) {
    r.offsets(region, pixel, place);
  }

  __device__ static void load_scores(const Regions& r, int64_t place, Pack& scores) {
    const Operand& o = r.pixels.operand[Regions::kInput];
    if constexpr (std::is_void_v<S>) scores.at[0] = read<T>(o, place);
    else scores = load_neighbours<P>(static_cast<const S*>(o.data) + place);
  }
  // Scores of the classes c, c + step, ... from `place` on; those of classes that there are not are not read.
  __device__ void load_group(int64_t place, int c, int step, Pack (&scores)[K]) const {
    const int64_t stride = r.class_stride[Regions::kInput] * step;
    LOSSREG_UNROLL
    for (int k = 0; k < K; k++, place += stride)
      if (c + k * step < classes) load_scores(r, place, scores[k]);
  }
  struct Group {
    int first;
    int64_t place;
    Pack scores[K];
  };
  // use(c, scores of c, c + step, ...) for groups of K classes, and the last of them. The labels are known by then:
  // they are read while the first scores are under way. Soft: there are none.
  template <bool Soft, class Use>
  __device__ Group each_group(int first, int step, Use use) {
    const int64_t stride = r.class_stride[Regions::kInput];
    Group g;
    g.first = first;
    g.place = place[Regions::kInput] + first * stride;
    load_group(g.place, first, step, g.scores);
    if constexpr (!Soft) read_labels();
    for (;;) {
      use(g.first, g.scores);
      if (g.first + K * step >= classes) return g;
      g.first += K * step;
      g.place += K * step * stride;
      load_group(g.place, g.first, step, g.scores);
    }
  }
  // Targets that are probabilities, of any floating dtype.
  __device__ void load_targets(int first, int step, T (&y)[K][P]) const {
    with_probabilities(r.pixels.operand[Regions::kTarget], [&](auto* data) {
      Neighbours<std::remove_pointer_t<decltype(data)>, P> packs[K];
      LOSSREG_UNROLL
      for (int k = 0; k < K; k++)
        if (first + k * step < classes)
          packs[k] = load_neighbours<P>(data + place_of(Regions::kTarget, first + k * step));
      LOSSREG_UNROLL
      for (int k = 0; k < K; k++) {
        if (first + k * step >= classes) break;
        LOSSREG_UNROLL
        for (int j = 0; j < P; j++) y[k][j] = widen<T>(packs[k].at[j]);
      }
    });
  }
  __device__ void store_grad(int c, const T (&y)[P]) const {
    const Operand& o = r.pixels.operand[Regions::kGradInput];
    if constexpr (std::is_void_v<S>) write(o, place_of(Regions::kGradInput, c), y[0]);
    else store_neighbours(static_cast<S*>(o.data) + place_of(Regions::kGradInput, c), y);
  }
  __device__ void store_target_grad(int c, const T (&y)[P]) const {
    const Operand& o = r.pixels.operand[Regions::kGradTarget];
    if (!o.data) return;
    with_probabilities(o, [&](auto* data) { store_neighbours(data + place_of(Regions::kGradTarget, c), y); });
  }

  // Labels are class indices of one of three dtypes; or where there are no classes, of any dtype.
  template <bool AnyDtype = false>
  __device__ void read_labels() {
    const Operand& o = r.pixels.operand[Regions::kTarget];
    auto from = [&](auto* tag) {
      using V = std::remove_pointer_t<decltype(tag)>;
      using Label = std::conditional_t<std::is_integral_v<V>, int64_t, double>;
      const Neighbours<V, P> pack = load_neighbours<P>(static_cast<const V*>(o.data) + place[Regions::kTarget]);
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) label[j] = r.label(widen<Label>(pack.at[j]));
    };
    if constexpr (AnyDtype) with_storage(o.dtype, from);
    else if (o.dtype == DType::int64) from(static_cast<int64_t*>(nullptr));
    else if (o.dtype == DType::int32) from(static_cast<int32_t*>(nullptr));
    else from(static_cast<uint8_t*>(nullptr));
    some_ignored = any(kIgnored);
  }
  // 0 for ignored pixels, whatever they hold.
  __device__ void leave_out(T (&y)[P]) const {
    LOSSREG_UNROLL
    for (int j = 0; j < P; j++) y[j] = label[j] == kIgnored ? T(0) : y[j];
  }
  __device__ bool any(int32_t kind) const {
    bool found = false;
    LOSSREG_UNROLL
    for (int j = 0; j < P; j++) found = found || label[j] == kind;
    return found;
  }

 private:
  __device__ int64_t place_of(Regions::Role k, int c) const { return place[k] + c * r.class_stride[k]; }
  // use(data) with the type that probabilities are stored in. T is wide enough for each, so that for float there is no
  // double.
  template <class Use>
  __device__ static void with_probabilities(const Operand& o, Use use) {
    with_floating_storage(o.dtype, [&](auto* tag) {
      using V = std::remove_pointer_t<decltype(tag)>;
      if constexpr (sizeof(V) <= sizeof(T)) use(static_cast<V*>(o.data));
    });
  }
};

// What the softmax of a pixel is multiplied with, class by class, which is the gradient in the probabilities. load(c)
// comes first; at(k, j) is that of class c + k and of pixel j.
struct NoSlopes {};
template <class Reader, class Coefficient>
struct ClassSlopes {
  using T = typename Reader::Number;
  const Reader& pixels;
  const T* first_ones;  // a and b of each class, as many as are in shared memory
  const int count;
  const Coefficient& coefficient;  // any of them, which takes longer
  int first;
  T of_hit[Reader::K], of_others[Reader::K];

  __device__ ClassSlopes(const Reader& pixels, const T* first_ones, int count, const Coefficient& coefficient)
      : pixels(pixels), first_ones(first_ones), count(count), coefficient(coefficient) {}
  __device__ void load(int c) {
    first = c;
    if (2 * (c + Reader::K) <= count) {
      LOSSREG_UNROLL
      for (int k = 0; k < Reader::K; k++) set(k, first_ones[2 * (c + k)], first_ones[2 * (c + k) + 1]);
    } else {
      LOSSREG_UNROLL
      for (int k = 0; k < Reader::K; k++)
        if (c + k < pixels.classes) set(k, coefficient(2 * (c + k)), coefficient(2 * (c + k) + 1));
    }
  }
  __device__ void set(int k, T a, T b) {
    of_hit[k] = class_slope(a, b, true);
    of_others[k] = class_slope(a, b, false);
  }
  __device__ T at(int k, int j) const { return pixels.label[j] == first + k ? of_hit[k] : of_others[k]; }
};
template <class Reader>
struct PlaneSlopes {
  using T = typename Reader::Number;
  const Reader& pixels;
  const T coefficient;  // of the region
  const T* planes;      // one a class
  Neighbours<T, Reader::P> of[Reader::K];

  __device__ PlaneSlopes(const Reader& pixels, T coefficient, const T* planes)
      : pixels(pixels), coefficient(coefficient), planes(planes) {}
  __device__ void load(int c) {
    LOSSREG_UNROLL
    for (int k = 0; k < Reader::K; k++)
      if (c + k < pixels.classes)
        of[k] =
            load_neighbours<Reader::P>(planes + int64_t(c + k) * pixels.r.pixels.numel + pixels.place[Regions::kFlat]);
  }
  __device__ T at(int k, int j) const { return coefficient * of[k].at[j]; }
};

// The greatest score of each pixel, the sum of e^(score - greatest), and the dot product of these with slopes.
template <class T, int P>
struct Softmaxes {
  T max[P], sum[P], dot[P];

  __device__ Softmaxes() {
    LOSSREG_UNROLL
    for (int j = 0; j < P; j++) max[j] = LogSumExp<T>::empty().max, sum[j] = dot[j] = T(0);
  }
  // The first n of K classes.
  template <class Scores, int K, class Slopes>
  __device__ void add(const Scores (&scores)[K], int n, const Slopes& slopes) {
    constexpr bool kDot = !std::is_same_v<Slopes, NoSlopes>;
    T top[P];
    LOSSREG_UNROLL
    for (int j = 0; j < P; j++) top[j] = max[j];
    LOSSREG_UNROLL
    for (int k = 0; k < K; k++) {
      if (k >= n) break;
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) top[j] = greater(top[j], widen<T>(scores[k].at[j]));
    }
    LOSSREG_UNROLL
    for (int j = 0; j < P; j++) {
      const T scale = exp_term(max[j] - top[j]);
      sum[j] *= scale;
      if constexpr (kDot) dot[j] *= scale;
      max[j] = top[j];
    }
    LOSSREG_UNROLL
    for (int k = 0; k < K; k++) {
      if (k >= n) break;
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) {
        const T e = exp_term(widen<T>(scores[k].at[j]) - max[j]);
        sum[j] += e;
        if constexpr (kDot) dot[j] += e * slopes.at(k, j);
      }
    }
  }
  __device__ T inverse(int j) const { return inverse_of_sum(sum[j], max[j]); }
};

// use(chunk, region, begin, end) for this block's chunks.
template <class T, class Use>
__device__ void each_chunk(const RegionPass<T>& pass, Use use) {
  // numbered in 32 bits: a chunk has 256 pixels or is a whole region
  for (unsigned chunk = blockIdx.x; chunk < pass.all_chunks(); chunk += gridDim.x) {
    unsigned region = chunk / unsigned(pass.chunks), index = chunk - region * unsigned(pass.chunks);
    int64_t begin = index * pass.chunk, end = begin + pass.chunk, pixels = pass.regions.pixels.numel;
    use(chunk, region, begin, end < pixels ? end : pixels);
  }
}
// use(pixels) for this thread's part of a chunk.
template <class Reader, class T, class Use>
__device__ void each_pixels(const RegionPass<T>& pass, int64_t region, int64_t begin, int64_t end, Use use) {
  for (int64_t pixel = begin + threadIdx.x * Reader::P; pixel < end; pixel += kThreads * Reader::P) {
    Reader pixels(pass.regions, region, pixel);
    use(pixels);
  }
}
// use(pixels, first class, step): where there is less to do than threads, several threads share the classes.
template <class Reader, class T, class Use>
__device__ void each_share(const RegionPass<T>& pass, int64_t region, int64_t begin, int64_t end, Use use) {
  const unsigned packs = unsigned(end - begin) / Reader::P;
  if (packs == 0) return;
  unsigned shares = packs < kThreads ? kThreads / packs : 1;
  if (shares > pass.regions.classes) shares = unsigned(pass.regions.classes);
  for (unsigned i = threadIdx.x; i < packs * shares; i += kThreads) {
    const unsigned share = shares == 1 ? 0 : i / packs;
    Reader pixels(pass.regions, region, begin + int64_t(i - share * packs) * Reader::P);
    use(pixels, share, shares);
  }
}

}  // namespace lossreg::cuda
