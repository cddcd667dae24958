#pragma once
// The CUDA region kernels: a block for a chunk of pixels, a thread a pixel.
#include "../../cuda/reduce.h"
#include "call.h"

namespace lossreg::cuda {

// One pixel: where it is, and its label.
template <class T, class S>
struct PixelReader {
  const Regions& r;
  int64_t offset[Regions::kRoles];
  int32_t label = kUnknown;

  __device__ PixelReader(const Regions& r, int64_t region, int64_t pixel, bool soft = false) : r(r) {
    r.offsets(region, pixel, offset);
    const Operand& o = r.pixels.operand[Regions::kTarget];
    if (soft) return;
    if (is_floating(o.dtype)) label = r.label(read<double>(o, offset[Regions::kTarget]));
    else label = r.label(read<int64_t>(o, offset[Regions::kTarget]));
  }
  __device__ T at(Regions::Role k, int64_t c) const {
    return read<T>(r.pixels.operand[k], offset[k] + c * r.class_stride[k]);
  }
  __device__ T score(int64_t c) const {
    if constexpr (std::is_void_v<S>) {
      return at(Regions::kInput, c);
    } else {
      int64_t place = offset[Regions::kInput] + c * r.class_stride[Regions::kInput];
      return widen<T>(static_cast<const S*>(r.pixels.operand[Regions::kInput].data)[place]);
    }
  }
  __device__ void put_grad(int64_t c, T value) const {
    const Operand& o = r.pixels.operand[Regions::kGradInput];
    int64_t place = offset[Regions::kGradInput] + c * r.class_stride[Regions::kGradInput];
    if constexpr (std::is_void_v<S>) {
      write(o, place, value);
    } else {
      static_cast<S*>(o.data)[place] = Narrow<S>::from(value);
    }
  }
  __device__ void put_target_grad(int64_t c, T value) const {
    const Operand& o = r.pixels.operand[Regions::kGradTarget];
    if (o.data) write(o, offset[Regions::kGradTarget] + c * r.class_stride[Regions::kGradTarget], value);
  }
};

// The softmax of a pixel, class by class, and the dot product of its probabilities with u, both before they are divided
// by the sum.
template <class T>
struct Softmax {
  LogSumExp<T> lse = LogSumExp<T>::empty();
  T dot = T(0);
  __device__ void add(T x, T u) {
    const Rise<T> rise = raised(lse.max, x);
    lse.sum = rise.joined(lse.sum, T(1));
    dot = rise.joined(dot, u);
  }
  __device__ T max() const { return lse.max; }
  __device__ T inverse() const { return inverse_of_sum(lse.sum, lse.max); }
};

// use(chunk, region, begin, end) for this block's chunks.
template <class T, class Use>
__device__ void each_chunk(const RegionPass<T>& pass, Use use) {
  for (int64_t chunk = blockIdx.x; chunk < pass.all_chunks(); chunk += gridDim.x) {
    int64_t begin = chunk % pass.chunks * pass.chunk, end = begin + pass.chunk, pixels = pass.regions.pixels.numel;
    use(chunk, chunk / pass.chunks, begin, end < pixels ? end : pixels);
  }
}
// use(region, pixel, first class, step) for this thread's part of a chunk: a pixel with all of its classes, or where
// there are fewer pixels than threads, some of the classes.
template <class T, class Use>
__device__ void each_pixel(const RegionPass<T>& pass, int64_t region, int64_t begin, int64_t end, Use use) {
  int64_t n = end - begin, classes = pass.regions.classes, threads = blockDim.x;
  int64_t lanes = n >= threads ? 1 : classes < threads / n ? classes : threads / n;
  for (int64_t e = threadIdx.x; e < n * lanes; e += threads) {
    int64_t lane = lanes == 1 ? 0 : e / n;
    use(region, begin + e - lane * n, lane, lanes);
  }
}

template <class T, class S, bool Soft, int Mode>
__global__ void __launch_bounds__(kThreads)
    region_sums_sigmoid(const __grid_constant__ RegionPass<T> pass, double* partial) {
  each_chunk(pass, [&](int64_t chunk, int64_t region, int64_t begin, int64_t end) {
    double sums[3] = {0, 0, 0};
    each_pixel(pass, region, begin, end, [&](int64_t region, int64_t pixel, int64_t first, int64_t step) {
      PixelReader<T, S> reader(pass.regions, region, pixel, Soft);
      if (!Soft && reader.label == kIgnored) return;
      T overlap = T(0), of_q = T(0), of_y = T(0);
      for (int64_t c = first; c < pass.regions.classes; c += step) {
        T w = pass.weight_of(c), y = Soft ? reader.at(Regions::kTarget, c) : reader.label == c ? T(1) : T(0);
        OverlapTerms<T> terms = overlap_terms<Soft, Mode>(pass.power, sigmoid(reader.score(c)), y);
        overlap += w * terms.overlap;
        of_q += w * terms.of_q;
        of_y += w * terms.of_y;
      }
      if (!Soft && reader.label == kUnknown) overlap = T(NAN);
      sums[0] += double(overlap);
      sums[1] += double(of_q);
      sums[2] += double(of_y);
    });
    for (int k = 0; k < 3; k++) {
      double total = block_sum(sums[k]);
      if (threadIdx.x == 0) partial[chunk * 3 + k] = total;
    }
  });
}

// The pixels of a chunk stay with their threads, the classes come one after the other: their sums are the block's.
constexpr int kPixels = 8;  // a thread's, at most
template <class T, class S>
__global__ void __launch_bounds__(kThreads)
    region_sums_softmax(const __grid_constant__ RegionPass<T> pass, double* partial) {
  each_chunk(pass, [&](int64_t chunk, int64_t region, int64_t begin, int64_t end) {
    int64_t offset[kPixels];
    T max[kPixels], inverse[kPixels];
    int32_t label[kPixels];
    const Regions& r = pass.regions;
    LOSSREG_UNROLL
    for (int k = 0; k < kPixels; k++) {
      int64_t pixel = begin + threadIdx.x + int64_t(k) * kThreads;
      label[k] = kIgnored;
      offset[k] = 0;
      max[k] = inverse[k] = T(0);
      if (pixel >= end) continue;
      PixelReader<T, S> reader(r, region, pixel);
      label[k] = reader.label;
      offset[k] = reader.offset[Regions::kInput];
      if (label[k] == kIgnored) continue;
      Softmax<T> s;
      for (int64_t c = 0; c < r.classes; c++) s.add(reader.score(c), T(0));
      max[k] = s.max();
      inverse[k] = label[k] == kUnknown ? T(NAN) : s.inverse();
    }
    for (int64_t c = 0; c < r.classes; c++) {
      T overlap = T(0), of_q = T(0), of_y = T(0);
      LOSSREG_UNROLL
      for (int k = 0; k < kPixels; k++) {
        if (label[k] == kIgnored) continue;
        int64_t place = offset[k] + c * r.class_stride[Regions::kInput];
        T x;
        if constexpr (std::is_void_v<S>) x = read<T>(r.pixels.operand[Regions::kInput], place);
        else x = widen<T>(static_cast<const S*>(r.pixels.operand[Regions::kInput].data)[place]);
        T q = exp_negative(x - max[k]) * inverse[k];
        OverlapTerms<T> terms = overlap_terms<false, 0>(pass.power, q, label[k] == c ? T(1) : T(0));
        overlap += terms.overlap;
        of_q += terms.of_q;
        of_y += terms.of_y;
      }
      // a block adds 2048 values at most: float keeps their digits
      double sums[3] = {double(block_sum(overlap)), double(block_sum(of_q)), double(block_sum(of_y))};
      if (threadIdx.x == 0)
        for (int k = 0; k < 3; k++) partial[(chunk * r.classes + c) * 3 + k] = sums[k];
    }
  });
}

template <class T, class S, bool Soft, int Mode>
__global__ void __launch_bounds__(kThreads)
    region_grad_sigmoid(const __grid_constant__ RegionPass<T> pass, const T* coefficients) {
  each_chunk(pass, [&](int64_t, int64_t region, int64_t begin, int64_t end) {
    each_pixel(pass, region, begin, end, [&](int64_t region, int64_t pixel, int64_t first, int64_t step) {
      PixelReader<T, S> reader(pass.regions, region, pixel, Soft);
      for (int64_t c = first; c < pass.regions.classes; c += step) {
        const T* k = coefficients + 2 * (region * pass.slots + pass.slot(c));
        T w = pass.weight_of(c), a = w * k[0], b = w * k[1];
        T y = Soft ? reader.at(Regions::kTarget, c) : reader.label == c ? T(1) : T(0);
        OverlapSlopes<T> slopes = sigmoid_overlap_slopes<Mode>(pass.power, a, b, reader.score(c), y);
        reader.put_grad(c, !Soft && reader.label == kIgnored ? T(0) : slopes.in_score);
        if (Soft) reader.put_target_grad(c, slopes.in_target);
      }
    });
  });
}

// The gradient in the probabilities is that of coefficients a and b a class, or a region's coefficient times planes,
// which hold the pixels of each class in their flat order.
template <class T, class S, bool Planes>
__global__ void __launch_bounds__(kThreads)
    region_grad_softmax(const __grid_constant__ RegionPass<T> pass, const T* coefficients, const T* planes) {
  each_chunk(pass, [&](int64_t, int64_t region, int64_t begin, int64_t end) {
    const Regions& r = pass.regions;
    const T* k = coefficients + region * (Planes ? 1 : 2 * r.classes);
    for (int64_t pixel = begin + threadIdx.x; pixel < end; pixel += blockDim.x) {
      PixelReader<T, S> reader(r, region, pixel);
      auto upstream = [&](int64_t c) {
        int64_t at = (region * r.classes + c) * r.pixels.numel + reader.offset[Regions::kFlat];
        if constexpr (Planes) return k[0] * planes[at];
        else return class_slope(k[2 * c], k[2 * c + 1], reader.label == c);
      };
      Softmax<T> s;
      bool ignored = reader.label == kIgnored;
      for (int64_t c = 0; c < r.classes && !ignored; c++) s.add(reader.score(c), upstream(c));
      T inverse = s.inverse(), dot = s.dot * inverse;
      for (int64_t c = 0; c < r.classes; c++) {
        T q = ignored ? T(0) : exp_negative(reader.score(c) - s.max()) * inverse;
        reader.put_grad(c, ignored ? T(0) : softmax_slope(q, upstream(c), dot));
      }
    }
  });
}

template <class T, class S, bool WithSoftmax>
__global__ void __launch_bounds__(kThreads)
    region_describe(const __grid_constant__ RegionPass<T> pass, T* max, T* inverse, int32_t* label) {
  each_chunk(pass, [&](int64_t, int64_t region, int64_t begin, int64_t end) {
    for (int64_t pixel = begin + threadIdx.x; pixel < end; pixel += blockDim.x) {
      PixelReader<T, S> reader(pass.regions, region, pixel);
      int64_t at = region * pass.regions.pixels.numel + reader.offset[Regions::kFlat];
      label[at] = reader.label;
      if constexpr (WithSoftmax) {
        Softmax<T> s;
        for (int64_t c = 0; c < pass.regions.classes; c++) s.add(reader.score(c), T(0));
        max[at] = s.max();
        inverse[at] = reader.label == kUnknown ? T(NAN) : s.inverse();
      }
    }
  });
}
template <class T, class S, bool WithSoftmax>
__global__ void __launch_bounds__(kThreads)
    region_keys(const __grid_constant__ RegionPass<T> pass, int64_t first, const T* max, const T* inverse,
                const int32_t* label, typename Key<T>::Bits* key) {
  int64_t pixels = pass.regions.pixels.numel, classes = pass.regions.classes;
  each_chunk(pass, [&](int64_t, int64_t plane, int64_t begin, int64_t end) {
    int64_t region = (first + plane) / classes, c = (first + plane) % classes;
    for (int64_t pixel = begin + threadIdx.x; pixel < end; pixel += blockDim.x) {
      PixelReader<T, S> reader(pass.regions, region, pixel, true);
      int64_t flat = reader.offset[Regions::kFlat], at = region * pixels + flat;
      T x = reader.score(c), error;
      if constexpr (WithSoftmax) error = region_error(exp_negative(x - max[at]) * inverse[at], label[at] == c);
      else error = hinge_error(x, label[at] == c);
      key[plane * pixels + flat] = label[at] == kIgnored ? Key<T>::ignored : Key<T>::of(error);
    }
  });
}

struct RegionKernels {
  static constexpr int64_t sorted_at_once = 1 << 22;

  // About one chunk a block, a multiple of a block's threads.
  template <class T>
  static int64_t chunk_pixels(const Regions& r) {
    int64_t rounds = r.count * r.pixels.numel / (int64_t(kThreads) * kMaxBlocks);
    return kThreads * std::clamp<int64_t>(rounds, 1, kPixels);
  }

  template <class T, bool WithSoftmax, bool Soft, int Mode>
  static void sums(const char*, const RegionPass<T>& pass, double* partial) {
    run(pass, [&](auto* tag, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      if constexpr (WithSoftmax) launch(region_sums_softmax<T, S>, blocks, kThreads, pass, partial);
      else launch(region_sums_sigmoid<T, S, Soft, Mode>, blocks, kThreads, pass, partial);
    });
  }
  template <class T, bool Soft, int Mode>
  static void grad_sigmoid(const RegionPass<T>& pass, const T* coefficients) {
    run(pass, [&](auto* tag, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(region_grad_sigmoid<T, S, Soft, Mode>, blocks, kThreads, pass, coefficients);
    });
  }
  template <class T, bool Planes>
  static void grad_softmax(const RegionPass<T>& pass, const T* coefficients, const T* planes) {
    run(pass, [&](auto* tag, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(region_grad_softmax<T, S, Planes>, blocks, kThreads, pass, coefficients, planes);
    });
  }
  template <class T, bool WithSoftmax>
  static void describe(const char*, const RegionPass<T>& pass, T* max, T* inverse, int32_t* label) {
    run(pass, [&](auto* tag, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(region_describe<T, S, WithSoftmax>, blocks, kThreads, pass, max, inverse, label);
    });
  }
  template <class T, bool WithSoftmax>
  static void keys(RegionPass<T> pass, int64_t first, int64_t planes, const T* max, const T* inverse,
                   const int32_t* label, typename Key<T>::Bits* key) {
    pass.regions.count = planes;
    run(pass, [&](auto* tag, unsigned blocks) {
      using S = std::remove_pointer_t<decltype(tag)>;
      launch(region_keys<T, S, WithSoftmax>, blocks, kThreads, pass, first, max, inverse, label, key);
    });
  }

 private:
  // use(S*, blocks) with the type that the scores and their gradient are stored in.
  template <class T, class Use>
  static void run(const RegionPass<T>& pass, Use use) {
    if (pass.all_chunks() == 0) return;
    auto blocks = unsigned(std::min<int64_t>(pass.all_chunks(), kMaxBlocks));
    with_storage_of<T>(pass.regions.pixels.operand[Regions::kInput].dtype, [&](auto* tag) { use(tag, blocks); });
  }
};

}  // namespace lossreg::cuda
