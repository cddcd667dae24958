#pragma once
// The CUDA region kernels: a block for a chunk of pixels, a thread for a few pixels that are read together.
#include "../../cuda/team.h"
#include "cuda_pixels.h"

namespace lossreg::cuda {

template <class T, class S, bool Packed, bool Soft, int Mode>
__global__ void __launch_bounds__(kThreads, Soft ? 2 : 3)
    region_sums_sigmoid(const __grid_constant__ RegionPass<T> pass, double* partial) {
  using Reader = Pixels<T, S, Packed>;
  constexpr int P = Reader::P, K = Reader::K;
  each_chunk(pass, [&](unsigned chunk, int64_t region, int64_t begin, int64_t end) {
    double sums[3] = {0, 0, 0};
    each_share<Reader>(pass, region, begin, end, [&](Reader& pixels, int first, int step) {
      T overlap = T(0), of_q = T(0), of_y = T(0);
      pixels.template each_group<Soft>(first, step, [&](int group, const auto& scores) {
        T y[K][P];
        if constexpr (Soft) pixels.load_targets(group, step, y);
        LOSSREG_UNROLL
        for (int k = 0; k < K; k++) {
          const int c = group + k * step;
          if (c >= pixels.classes) break;
          OverlapTerms<T> of_class = {T(0), T(0), T(0)};
          LOSSREG_UNROLL
          for (int j = 0; j < P; j++) {
            T q = sigmoid(widen<T>(scores[k].at[j])), of = Soft ? y[k][j] : pixels.label[j] == c ? T(1) : T(0);
            if (!Soft && pixels.some_ignored && pixels.label[j] == kIgnored) q = T(0);
            OverlapTerms<T> terms = overlap_terms<Soft, Mode>(pass.power, q, of);
            of_class.overlap += terms.overlap;
            of_class.of_q += terms.of_q;
            of_class.of_y += terms.of_y;
          }
          const T w = pass.weight_of(c);
          overlap += w * of_class.overlap;
          of_q += w * of_class.of_q;
          of_y += w * of_class.of_y;
        }
      });
      if (!Soft && pixels.any(kUnknown)) overlap = T(NAN);
      sums[0] += double(overlap);
      sums[1] += double(of_q);
      sums[2] += double(of_y);
    });
    block_sums(sums);
    LOSSREG_UNROLL
    for (int k = 0; k < 3; k++)
      if (threadIdx.x == 0) partial[chunk * 3 + k] = sums[k];
  });
}

// The sums of every class. First each thread finds the greatest score and the sum of exponentials of its pixels; then
// each warp takes a class at a time, and reads its scores of all pixels again, which the caches still hold.
template <class T, class S, bool Packed>
__global__ void __launch_bounds__(kThreads, 3)
    region_sums_softmax(const __grid_constant__ RegionPass<T> pass, double* partial) {
  using Reader = Pixels<T, S, Packed>;
  constexpr int P = Reader::P, kTogether = P == 4 ? 4 : 2;
  constexpr unsigned kWarps = kThreads / 32;
  __shared__ Neighbours<T, P> max_of[kThreads], inverse_of[kThreads];
  __shared__ Neighbours<int32_t, P> label_of[kThreads];
  __shared__ int64_t place_of[kThreads];
  __shared__ T of_warp[kWarps][3];
  const Regions& r = pass.regions;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, classes = unsigned(r.classes);
  // several warps share a class where there are fewer classes than warps
  const unsigned shares = classes < kWarps ? kWarps / classes : 1;
  each_chunk(pass, [&](unsigned chunk, int64_t region, int64_t chunk_begin, int64_t chunk_end) {
    for (int64_t begin = chunk_begin; begin < chunk_end; begin += kThreads * P) {
      auto leave = [&](unsigned c, int k, T sum) {
        double* place = partial + (chunk * r.classes + c) * 3 + k;
        *place = (begin == chunk_begin ? 0.0 : *place) + double(sum);
      };
      const int64_t end = begin + kThreads * P < chunk_end ? begin + kThreads * P : chunk_end;
      const unsigned packs = unsigned(end - begin) / P, pack = threadIdx.x;
      if (pack < packs) {
        Reader pixels(r, region, begin + pack * P);
        Softmaxes<T, P> softmax;
        pixels.template each_group<false>(
            0, 1, [&](int c, const auto& scores) { softmax.add(scores, pixels.classes - c, NoSlopes{}); });
        LOSSREG_UNROLL
        for (int j = 0; j < P; j++) {
          max_of[pack].at[j] = softmax.max[j];
          inverse_of[pack].at[j] = pixels.label[j] == kUnknown ? T(NAN) : softmax.inverse(j);
          label_of[pack].at[j] = pixels.label[j];
        }
        place_of[pack] = pixels.place[Regions::kInput];
      }
      __syncthreads();
      for (unsigned item = warp; item < classes * shares; item += kWarps) {
        const unsigned c = item / shares, step = 32 * shares;
        const int64_t at_class = c * r.class_stride[Regions::kInput];
        // a warp adds two thousand numbers at most: float keeps their digits
        T overlap = T(0), of_q = T(0);
        int hits = 0;
        for (unsigned first = item % shares * 32 + lane; first < packs; first += kTogether * step) {
          typename Reader::Pack scores[kTogether];
          LOSSREG_UNROLL
          for (int k = 0; k < kTogether; k++)
            if (first + k * step < packs) Reader::load_scores(r, place_of[first + k * step] + at_class, scores[k]);
          LOSSREG_UNROLL
          for (int k = 0; k < kTogether; k++) {
            const unsigned at = first + k * step;
            if (at >= packs) break;
            const Neighbours<T, P> max = max_of[at], inverse = inverse_of[at];
            const Neighbours<int32_t, P> label = label_of[at];
            LOSSREG_UNROLL
            for (int j = 0; j < P; j++) {
              const T e = exp_term(widen<T>(scores[k].at[j]) - max.at[j]);
              if (label.at[j] != kIgnored) of_q += e * inverse.at[j];
              if (label.at[j] == int(c)) overlap += e * inverse.at[j], hits++;
            }
          }
        }
        T sums[3] = {overlap, of_q, T(hits)};
        LOSSREG_UNROLL
        for (int k = 0; k < 3; k++) {
          for (int step = 16; step > 0; step /= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], step);
          if (lane == 0 && shares == 1) leave(c, k, sums[k]);
          if (lane == 0 && shares > 1) of_warp[item][k] = sums[k];
        }
      }
      __syncthreads();  // before the arrays are written again
      if (shares > 1 && threadIdx.x < classes * 3) {
        const unsigned c = threadIdx.x / 3, k = threadIdx.x % 3;
        T sum = T(0);
        for (unsigned i = 0; i < shares; i++) sum += of_warp[c * shares + i][k];
        leave(c, k, sum);
      }
    }
  });
}

// close() of every region, whose sums these kernels left, `numbers` of each chunk; and finish() by the block that comes
// last.
template <class Close>
__global__ void __launch_bounds__(kThreads)
    regions_close(const __grid_constant__ Close close, double* partial, int64_t regions, int64_t chunks,
                  int64_t numbers, Arrivals arrivals) {
  for (int64_t region = blockIdx.x; region < regions; region += gridDim.x) {
    close(region, partial + region * chunks * numbers, chunks, Team{});
    __syncthreads();
  }
  __shared__ bool last;
  if (threadIdx.x == 0) last = arrivals.is_last(gridDim.x);
  __syncthreads();
  if (last) close.finish(regions, Team{});
}

template <class T, class S, bool Packed, bool Soft, int Mode, class Coefficients>
__global__ void __launch_bounds__(kThreads)
    region_grad_sigmoid(const __grid_constant__ RegionPass<T> pass, const __grid_constant__ Coefficients coefficients) {
  using Reader = Pixels<T, S, Packed>;
  constexpr int P = Reader::P, K = Reader::K;
  each_chunk(pass, [&](unsigned, int64_t region, int64_t begin, int64_t end) {
    const double factor = coefficients.factor(region);
    const int64_t first_one = region * OverlapSlopes<T>::count;
    const OverlapSlopes<T> of_region = {coefficients(factor, first_one), coefficients(factor, first_one + 1),
                                        coefficients(factor, first_one + 2)};
    each_share<Reader>(pass, region, begin, end, [&](Reader& pixels, int first, int step) {
      pixels.template each_group<Soft>(first, step, [&](int group, const auto& scores) {
        T y[K][P];
        if constexpr (Soft) pixels.load_targets(group, step, y);
        LOSSREG_UNROLL
        for (int k = 0; k < K; k++) {
          const int c = group + k * step;
          if (c >= pixels.classes) break;
          const OverlapSlopes<T> of_class = of_region.times(pass.weight_of(c));
          T in_score[P], in_target[P];
          LOSSREG_UNROLL
          for (int j = 0; j < P; j++) {
            const T of = Soft ? y[k][j] : pixels.label[j] == c ? T(1) : T(0);
            PixelSlopes<T> slopes = sigmoid_overlap_slopes<Mode>(pass.power, of_class, widen<T>(scores[k].at[j]), of);
            in_score[j] = slopes.in_score;
            in_target[j] = slopes.in_target;
          }
          if (!Soft && pixels.some_ignored) pixels.leave_out(in_score);
          pixels.store_grad(c, in_score);
          if constexpr (Soft) pixels.store_target_grad(c, in_target);
        }
      });
    });
  });
}

// The gradient in the probabilities is that of coefficients a and b a class, or a region's coefficient times planes,
// which hold the pixels of each class in their flat order. The classes are read a second time from the last one
// backwards: those that were read last are the most likely to be in the caches.
template <class T, class S, bool Packed, bool Planes, class Coefficients>
__global__ void __launch_bounds__(kThreads)
    region_grad_softmax(const __grid_constant__ RegionPass<T> pass, const __grid_constant__ Coefficients coefficients,
                        const T* planes) {
  using Reader = Pixels<T, S, Packed>;
  constexpr int P = Reader::P, K = Reader::K, kShared = 512;
  __shared__ T of_classes[kShared];
  const Regions& r = pass.regions;
  const int64_t numbers = Planes ? 1 : 2 * r.classes;
  each_chunk(pass, [&](unsigned, int64_t region, int64_t begin, int64_t end) {
    const double factor = coefficients.factor(region);
    // as many as there is room for; a rare greater number of classes computes its coefficients as it needs them
    __syncthreads();  // after the last chunk's use
    for (int64_t i = threadIdx.x; i < numbers && i < kShared; i += kThreads)
      of_classes[i] = coefficients(factor, region * numbers + i);
    __syncthreads();
    auto coefficient = [&](int64_t i) { return coefficients(factor, region * numbers + i); };
    each_pixels<Reader>(pass, region, begin, end, [&](Reader& pixels) {
      auto slopes = [&] {
        if constexpr (Planes)
          return PlaneSlopes<Reader>(pixels, of_classes[0], planes + region * r.classes * r.pixels.numel);
        else return ClassSlopes<Reader, decltype(coefficient)>(pixels, of_classes, kShared, coefficient);
      }();
      Softmaxes<T, P> softmax;
      auto last = pixels.template each_group<false>(0, 1, [&](int c, const auto& scores) {
        slopes.load(c);
        softmax.add(scores, pixels.classes - c, slopes);
      });
      T inverse[P], dot[P];
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) inverse[j] = softmax.inverse(j), dot[j] = softmax.dot[j] * inverse[j];
      for (;;) {
        LOSSREG_UNROLL
        for (int k = 0; k < K; k++) {
          if (last.first + k >= pixels.classes) break;
          T y[P];
          LOSSREG_UNROLL
          for (int j = 0; j < P; j++) {
            const T q = exp_term(widen<T>(last.scores[k].at[j]) - softmax.max[j]) * inverse[j];
            y[j] = softmax_slope(q, slopes.at(k, j), dot[j]);
          }
          if (pixels.some_ignored) pixels.leave_out(y);
          pixels.store_grad(last.first + k, y);
        }
        last.first -= K;
        if (last.first < 0) break;
        last.place -= K * r.class_stride[Regions::kInput];
        pixels.load_group(last.place, last.first, 1, last.scores);
        slopes.load(last.first);
      }
    });
  });
}

template <class T, class S, bool Packed, bool WithSoftmax>
__global__ void __launch_bounds__(kThreads)
    region_describe(const __grid_constant__ RegionPass<T> pass, T* max, T* inverse, int32_t* label) {
  using Reader = Pixels<T, S, Packed>;
  constexpr int P = Reader::P;
  const Regions& r = pass.regions;
  each_chunk(pass, [&](unsigned, int64_t region, int64_t begin, int64_t end) {
    each_pixels<Reader>(pass, region, begin, end, [&](Reader& pixels) {
      const int64_t at = region * r.pixels.numel + pixels.place[Regions::kFlat];
      if constexpr (WithSoftmax) {
        Softmaxes<T, P> softmax;
        pixels.template each_group<false>(
            0, 1, [&](int c, const auto& scores) { softmax.add(scores, pixels.classes - c, NoSlopes{}); });
        T factor[P];
        LOSSREG_UNROLL
        for (int j = 0; j < P; j++) factor[j] = pixels.label[j] == kUnknown ? T(NAN) : softmax.inverse(j);
        store_neighbours(max + at, softmax.max);
        store_neighbours(inverse + at, factor);
      } else {
        pixels.template read_labels<true>();
      }
      Neighbours<int32_t, P> labels;
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) labels.at[j] = pixels.label[j];
      store_neighbours(label + at, labels);
    });
  });
}
template <class T, class S, bool Packed, bool WithSoftmax>
__global__ void __launch_bounds__(kThreads)
    region_keys(const __grid_constant__ RegionPass<T> pass, int64_t first, const T* max, const T* inverse,
                const int32_t* label, typename Key<T>::Bits* key) {
  using Reader = Pixels<T, S, Packed>;
  constexpr int P = Reader::P;
  const int64_t pixels_of_all = pass.regions.pixels.numel, classes = pass.regions.classes;
  each_chunk(pass, [&](unsigned, int64_t plane, int64_t begin, int64_t end) {
    const int64_t region = (first + plane) / classes, c = first + plane - region * classes;
    each_pixels<Reader>(pass, region, begin, end, [&](Reader& pixels) {
      const int64_t flat = pixels.place[Regions::kFlat], at = region * pixels_of_all + flat;
      typename Reader::Pack scores;
      Reader::load_scores(pass.regions, pixels.place[Regions::kInput] + c * pass.regions.class_stride[Regions::kInput],
                          scores);
      const auto labels = load_neighbours<P>(label + at);
      Neighbours<T, P> greatest, factor;
      if constexpr (WithSoftmax) greatest = load_neighbours<P>(max + at), factor = load_neighbours<P>(inverse + at);
      Neighbours<typename Key<T>::Bits, P> keys;
      LOSSREG_UNROLL
      for (int j = 0; j < P; j++) {
        const T x = widen<T>(scores.at[j]);
        const bool hit = labels.at[j] == c;
        T error;
        if constexpr (WithSoftmax) error = region_error(exp_term(x - greatest.at[j]) * factor.at[j], hit);
        else error = hinge_error(x, hit);
        keys.at[j] = labels.at[j] == kIgnored ? Key<T>::ignored : Key<T>::of(error);
      }
      store_neighbours(key + plane * pixels_of_all + flat, keys);
    });
  });
}

struct RegionKernels {
  static constexpr int64_t sorted_at_once = 1 << 22;

  // A pack a thread where there are pixels enough for about eight blocks a multiprocessor.
  template <class T>
  static int64_t chunk_pixels(const Regions& r) {
    int64_t rounds = r.count * r.pixels.numel / (int64_t(kThreads) * 1024);
    return kThreads * std::clamp<int64_t>(rounds, 1, 16 / size_of(r.pixels.operand[Regions::kInput].dtype));
  }

  template <class T, bool WithSoftmax, bool Soft, int Mode, class Close>
  static void sums(const char*, const Tensor& like, RegionPass<T> pass, Close close) {
    const int64_t regions = pass.regions.count, numbers = pass.slots * 3;
    Tensor memory = new_empty(like, {pass.all_chunks() * numbers + 1}, DType::float64);
    auto* word = static_cast<unsigned long long*>(memory.mutable_data_ptr());
    auto* partial = static_cast<double*>(memory.mutable_data_ptr()) + 1;
    run<Mode == 2>(pass, [&](auto* tag, auto packed, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if constexpr (WithSoftmax) launch(region_sums_softmax<T, S, packed>, blocks, kThreads, pass, partial);
      else launch(region_sums_sigmoid<T, S, packed, Soft, kKernelMode<Mode>>, blocks, kThreads, pass, partial);
    });
    auto blocks = unsigned(std::clamp<int64_t>(regions, 1, kMaxBlocks));
    launch(regions_close<Close>, blocks, kThreads, close, partial, regions, pass.chunks, numbers,
           Arrivals{word, Arrivals::new_tag()});
  }
  template <class T, bool Soft, int Mode, class Coefficients>
  static void grad_sigmoid(const RegionPass<T>& pass, const Coefficients& coefficients) {
    run<Mode == 2>(pass, [&](auto* tag, auto packed, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(region_grad_sigmoid<T, S, packed, Soft, kKernelMode<Mode>, Coefficients>, blocks, kThreads, pass,
             coefficients);
    });
  }
  template <class T, bool Planes, class Coefficients>
  static void grad_softmax(const RegionPass<T>& pass, const Coefficients& coefficients, const T* planes) {
    run(pass, [&](auto* tag, auto packed, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(region_grad_softmax<T, S, packed, Planes, Coefficients>, blocks, kThreads, pass, coefficients, planes);
    });
  }
  template <class T, bool WithSoftmax>
  static void describe(const char*, const RegionPass<T>& pass, T* max, T* inverse, int32_t* label) {
    run(pass, [&](auto* tag, auto packed, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(region_describe<T, S, packed, WithSoftmax>, blocks, kThreads, pass, max, inverse, label);
    });
  }
  template <class T, bool WithSoftmax>
  static void keys(RegionPass<T> pass, int64_t first, int64_t planes, const T* max, const T* inverse,
                   const int32_t* label, typename Key<T>::Bits* key) {
    pass.regions.count = planes;
    run(pass, [&](auto* tag, auto packed, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(region_keys<T, S, packed, WithSoftmax>, blocks, kThreads, pass, first, max, inverse, label, key);
    });
  }

 private:
  // The kernels for p = 1 and p = 2 are one, and that for any other p.
  template <int Mode>
  static constexpr int kKernelMode = Mode == 2 ? 2 : Power::kOneOrTwo;

  // use(S*, packed, blocks) with the type that the scores and their gradient are stored in, and how they lie. A formula
  // whose arithmetic takes longer than its memory is compiled for pixels that lie anyhow only.
  template <bool Slow = false, class T, class Use>
  static void run(const RegionPass<T>& pass, Use use) {
    if (pass.all_chunks() == 0) return;
    auto blocks = unsigned(std::min<int64_t>(pass.all_chunks(), kMaxBlocks));
    with_storage_of<T>(pass.regions.pixels.operand[Regions::kInput].dtype, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if constexpr (!Slow && sizeof(T) == 4) {
        if (are_packed<S>(pass.regions)) return use(tag, std::true_type{}, blocks);
      }
      use(tag, std::false_type{}, blocks);
    });
  }
};

}  // namespace lossreg::cuda
