#pragma once
// The CPU's region kernels: tiles of pixels, one class at a time, as the row kernels do across rows.
#include "../../cpu/team.h"
#include "call.h"
#include "cpu_loops.h"

namespace lossreg::cpu {

// One thread's work on a pass, and its buffers.
template <class T>
class RegionWorker {
 public:
  // Pixels taken together; a chunk is a fixed number of tiles, so that sums do not depend on the threads.
  static int64_t tile_pixels(int64_t classes) { return std::clamp<int64_t>(kChunk / classes, 16, kMost); }

  explicit RegionWorker(const Regions& r) : r_(r), tile_(tile_pixels(r.classes)) {}

  static constexpr int64_t kNone = INT64_MIN;
  int64_t bad_class = kNone;  // a class index that is neither ignored nor a class

  // sums: three a slot, of the pixels [begin, end) of a region.
  template <bool Softmax, bool Soft, int Mode>
  void sums(const RegionPass<T>& pass, int64_t region, int64_t begin, int64_t end, double* sums) {
    std::fill(sums, sums + 3 * pass.slots, 0.0);
    each_run(region, begin, end, [&](int64_t n, const int64_t* offset) {
      read_labels<Soft>(n, offset);
      if constexpr (Softmax) probabilities(n, offset);
      else if (along_classes(pass)) return sums_of_rows<Soft, Mode>(pass.power, n, offset, sums);
      for (int64_t c = 0; c < r_.classes; c++) {
        const T* q = plane_.data() + c * tile_;
        if constexpr (!Softmax) sigmoid_plane(out_, read(Regions::kInput, c, offset, n, x_), label_, n), q = out_;
        const T* y = Soft ? read(Regions::kTarget, c, offset, n, y_) : nullptr;
        double weight = double(pass.weight_of(c));
        sum_plane<T, Soft, Mode>(pass.power, q, y, label_, int32_t(c), weight, sums + 3 * pass.slot(c), n);
      }
    });
  }
  template <bool Soft, int Mode>
  void grad_sigmoid(const RegionPass<T>& pass, const OverlapSlopes<T>& slopes, int64_t region, int64_t begin,
                    int64_t end) {
    each_run(region, begin, end, [&](int64_t n, const int64_t* offset) {
      read_labels<Soft>(n, offset);
      if (along_classes(pass)) return grad_of_rows<Soft, Mode>(pass.power, slopes, n, offset);
      for (int64_t c = 0; c < r_.classes; c++) {
        const T* x = read(Regions::kInput, c, offset, n, x_);
        const T* y = Soft ? read(Regions::kTarget, c, offset, n, y_) : nullptr;
        T* grad_x = place(Regions::kGradInput, c, offset, out_);
        T* grad_y = place(Regions::kGradTarget, c, offset, out_y_);
        const OverlapSlopes<T> of_class = slopes.times(pass.weight_of(c));
        grad_sigmoid_plane<T, Soft, Mode>(pass.power, of_class, grad_x, grad_y, x, y, label_, int32_t(c), n);
        write(Regions::kGradInput, c, offset, n, grad_x);
        if constexpr (Soft) write(Regions::kGradTarget, c, offset, n, grad_y);
      }
    });
  }
  // The gradient in the probabilities is that of coefficients a and b a class, or a region's coefficient times planes,
  // which hold the pixels of each class in their flat order.
  template <bool Planes>
  void grad_softmax(const T* coefficients, const T* planes, int64_t region, int64_t begin, int64_t end) {
    each_run(region, begin, end, [&](int64_t n, const int64_t* offset) {
      read_labels<false>(n, offset);
      probabilities(n, offset);
      std::fill(sum_, sum_ + n, T(0));
      auto of_class = [&](int64_t c, auto use) {
        T a = coefficients[Planes ? 0 : 2 * c], b = coefficients[Planes ? 0 : 2 * c + 1];
        const T* u = nullptr;
        if constexpr (Planes) {
          int64_t at = (region * r_.classes + c) * r_.pixels.numel + offset[Regions::kFlat];
          u = load(dtype_for<T>, planes, at, stride(Regions::kFlat), x_, n);
        }
        use(a, b, plane_.data() + c * tile_, u);
      };
      for (int64_t c = 0; c < r_.classes; c++)
        of_class(c, [&](T a, T b, const T* q, const T* u) {
          dot_plane<T, Planes>(sum_, a, b, q, u, label_, int32_t(c), n);
        });
      for (int64_t c = 0; c < r_.classes; c++)
        of_class(c, [&](T a, T b, const T* q, const T* u) {
          T* grad = place(Regions::kGradInput, c, offset, out_);
          grad_softmax_plane<T, Planes>(grad, a, b, q, sum_, u, label_, int32_t(c), n);
          write(Regions::kGradInput, c, offset, n, grad);
        });
    });
  }

  // What the errors of a region are made of, at the flat places of its pixels: statistics of the softmax, and labels.
  template <bool Softmax>
  void describe(int64_t region, int64_t begin, int64_t end, T* max, T* inverse, int32_t* label) {
    each_run(region, begin, end, [&](int64_t n, const int64_t* offset) {
      read_labels<false>(n, offset);
      int64_t at = region * r_.pixels.numel + offset[Regions::kFlat], step = stride(Regions::kFlat);
      for (int64_t i = 0; i < n; i++) label[at + i * step] = label_[i];
      if constexpr (Softmax) {
        statistics(n, offset);
        store(dtype_for<T>, max, at, step, max_, n);
        store(dtype_for<T>, inverse, at, step, sum_, n);
      }
    });
  }
  // The keys of one class, at the flat places of the pixels.
  template <bool Softmax>
  void keys(int64_t region, int64_t c, int64_t begin, int64_t end, const T* max, const T* inverse, const int32_t* label,
            typename Key<T>::Bits* key) {
    each_run(region, begin, end, [&](int64_t n, const int64_t* offset) {
      int64_t flat = offset[Regions::kFlat], at = region * r_.pixels.numel + flat, step = stride(Regions::kFlat);
      const T* x = read(Regions::kInput, c, offset, n, x_);
      const T *m = nullptr, *s = nullptr;
      if constexpr (Softmax) {
        m = load(dtype_for<T>, max, at, step, max_, n);
        s = load(dtype_for<T>, inverse, at, step, sum_, n);
      }
      if (step == 1) return key_plane<T, Softmax>(key + flat, x, m, s, label + at, int32_t(c), n);
      typename Key<T>::Bits buffer[kMost];
      for (int64_t i = 0; i < n; i++) label_[i] = label[at + i * step];
      key_plane<T, Softmax>(buffer, x, m, s, label_, int32_t(c), n);
      for (int64_t i = 0; i < n; i++) key[flat + i * step] = buffer[i];
    });
  }

 private:
  static constexpr int64_t kMost = 512;

  template <class Run>
  void each_run(int64_t region, int64_t begin, int64_t end, Run run) {
    int64_t inner = r_.pixels.dims ? r_.pixels.size[0] : 1;
    for (int64_t at = begin; at < end;) {
      int64_t n = std::min({end - at, tile_, inner - at % inner});
      int64_t offset[Regions::kRoles];
      r_.offsets(region, at, offset);
      run(n, offset);
      at += n;
    }
  }
  int64_t stride(Regions::Role k) const { return r_.pixels.dims ? r_.pixels.operand[k].stride[0] : 0; }
  const T* read(Regions::Role k, int64_t c, const int64_t* offset, int64_t n, T* buffer) const {
    const Operand& o = r_.pixels.operand[k];
    return load(o.dtype, o.data, offset[k] + c * r_.class_stride[k], stride(k), buffer, n);
  }
  // Where the gradient of a class goes: straight into memory where that holds T in order, else into the buffer.
  T* place(Regions::Role k, int64_t c, const int64_t* offset, T* buffer) const {
    const Operand& o = r_.pixels.operand[k];
    bool direct = o.data && o.dtype == dtype_for<T> && stride(k) == 1;
    return direct ? static_cast<T*>(o.data) + offset[k] + c * r_.class_stride[k] : buffer;
  }
  void write(Regions::Role k, int64_t c, const int64_t* offset, int64_t n, const T* from) const {
    const Operand& o = r_.pixels.operand[k];
    bool buffered = from == out_ || from == out_y_;
    if (o.data && buffered) store(o.dtype, o.data, offset[k] + c * r_.class_stride[k], stride(k), from, n);
  }

  // Where a region is a pixel or a few, vectors run along the classes of a pixel, if these have no weights.
  bool along_classes(const RegionPass<T>& pass) const {
    return r_.pixels.numel < 8 && r_.classes > r_.pixels.numel && !pass.weight;
  }
  // use(offsets, y, n) for pieces of the classes of pixel i, with the targets y spelled out.
  template <bool Soft, class Use>
  void each_piece(int64_t i, const int64_t* offset, Use use) {
    for (int64_t c = 0; c < r_.classes; c += kMost) {
      int64_t n = std::min(kMost, r_.classes - c), at[Regions::kRoles];
      for (int k = 0; k < Regions::kRoles; k++)
        at[k] = offset[k] + i * stride(Regions::Role(k)) + c * r_.class_stride[k];
      if constexpr (!Soft) {
        std::fill(y_, y_ + n, T(0));
        if (label_[i] >= c && label_[i] < c + n) y_[label_[i] - c] = T(1);
      }
      use(at, Soft ? read_row(Regions::kTarget, at, n, y_) : y_, n);
    }
  }
  const T* read_row(Regions::Role k, const int64_t* at, int64_t n, T* buffer) const {
    const Operand& o = r_.pixels.operand[k];
    return load(o.dtype, o.data, at[k], r_.class_stride[k], buffer, n);
  }
  void write_row(Regions::Role k, const int64_t* at, int64_t n, const T* from) const {
    const Operand& o = r_.pixels.operand[k];
    if (o.data) store(o.dtype, o.data, at[k], r_.class_stride[k], from, n);
  }
  template <bool Soft, int Mode>
  void sums_of_rows(const Power& power, int64_t n, const int64_t* offset, double* sums) {
    std::fill(known_, known_ + kMost, 0);
    for (int64_t i = 0; i < n; i++) {
      if (label_[i] == kIgnored) continue;
      each_piece<Soft>(i, offset, [&](const int64_t* at, const T* y, int64_t m) {
        sigmoid_plane(out_, read_row(Regions::kInput, at, m, x_), known_, m);
        sum_plane<T, true, Mode>(power, out_, y, known_, 0, 1.0, sums, m);
      });
    }
  }
  template <bool Soft, int Mode>
  void grad_of_rows(const Power& power, const OverlapSlopes<T>& slopes, int64_t n, const int64_t* offset) {
    std::fill(known_, known_ + kMost, 0);
    for (int64_t i = 0; i < n; i++) {
      bool ignored = label_[i] == kIgnored;
      each_piece<Soft>(i, offset, [&](const int64_t* at, const T* y, int64_t m) {
        const T* x = read_row(Regions::kInput, at, m, x_);
        grad_sigmoid_plane<T, true, Mode>(power, slopes, out_, out_y_, x, y, known_, 0, m);
        if (ignored) std::fill(out_, out_ + m, T(0));  // whatever it holds
        write_row(Regions::kGradInput, at, m, out_);
        if constexpr (Soft) write_row(Regions::kGradTarget, at, m, out_y_);
      });
    }
  }

  template <bool Soft>
  void read_labels(int64_t n, const int64_t* offset) {
    if constexpr (Soft) {
      std::fill(label_, label_ + n, kUnknown);
    } else {
      const Operand& o = r_.pixels.operand[Regions::kTarget];
      if (is_floating(o.dtype)) label_all<double>(o, offset, n);
      else label_all<int64_t>(o, offset, n);
    }
  }
  template <class V>
  void label_all(const Operand& o, const int64_t* offset, int64_t n) {
    V buffer[kMost];
    const V* t = load(o.dtype, o.data, offset[Regions::kTarget], stride(Regions::kTarget), buffer, n);
    bool unknown = false;
    for (int64_t i = 0; i < n; i++) {
      label_[i] = r_.label(t[i]);
      unknown |= label_[i] == kUnknown;
    }
    for (int64_t i = 0; unknown && i < n; i++)
      if (label_[i] == kUnknown) bad_class = int64_t(t[i]);
  }
  // max_ and sum_, 1 / sum of e^(x - max); and e^(x - max) in the planes.
  void statistics(int64_t n, const int64_t* offset) {
    plane_.resize(size_t(r_.classes * tile_));
    scores_.resize(size_t(r_.classes));
    std::fill(max_, max_ + n, LogSumExp<T>::empty().max);
    for (int64_t c = 0; c < r_.classes; c++) {
      const T* x = scores_[size_t(c)] = read(Regions::kInput, c, offset, n, plane_.data() + c * tile_);
      raise_all(max_, x, n);
    }
    std::fill(sum_, sum_ + n, T(0));
    for (int64_t c = 0; c < r_.classes; c++) exp_plane(plane_.data() + c * tile_, sum_, max_, scores_[size_t(c)], n);
    invert_all(sum_, max_, n);
  }
  void probabilities(int64_t n, const int64_t* offset) {
    statistics(n, offset);
    for (int64_t c = 0; c < r_.classes; c++) scale_plane(plane_.data() + c * tile_, sum_, label_, n);
  }

  const Regions& r_;
  const int64_t tile_;
  std::vector<T> plane_;
  std::vector<const T*> scores_;
  alignas(64) T x_[kMost], y_[kMost], out_[kMost], out_y_[kMost], max_[kMost], sum_[kMost];
  alignas(64) int32_t label_[kMost], known_[kMost];  // known_: labels of pixels that are not ignored
};

struct RegionKernels {
  // Pixels that are sorted at once where planes are small. Beyond it, torch sorts a vector of integers by their digits.
  static constexpr int64_t sorted_at_once = 1 << 15;

  // Whole tiles, about a chunk of work.
  template <class T>
  static int64_t chunk_pixels(const Regions& r) {
    int64_t tile = RegionWorker<T>::tile_pixels(r.classes);
    return tile * std::max<int64_t>(1, kChunk / (tile * r.classes));
  }

  template <class T, bool Softmax, bool Soft, int Mode, class Close>
  static void sums(const char* op, const Tensor&, RegionPass<T> pass, Close close) {
    std::vector<int64_t> bad(size_t(pass.all_chunks()));
    const int64_t numbers = pass.slots * 3;
    std::vector<double> partial(size_t(pass.all_chunks() * numbers));
    each_chunk(pass, [&](RegionWorker<T>& worker, int64_t chunk, int64_t region, int64_t begin, int64_t end) {
      worker.template sums<Softmax, Soft, Mode>(pass, region, begin, end, partial.data() + chunk * numbers);
      bad[size_t(chunk)] = worker.bad_class;
    });
    check_classes<T>(op, pass.regions, bad);
    for (int64_t region = 0; region < pass.regions.count; region++)
      close(region, partial.data() + region * pass.chunks * numbers, pass.chunks, Team{});
    close.finish(pass.regions.count, Team{});
  }
  template <class T, bool Soft, int Mode, class Coefficients>
  static void grad_sigmoid(RegionPass<T> pass, const Coefficients& of) {
    constexpr int64_t each = OverlapSlopes<T>::count;
    const std::vector<T> all = every(pass, each, of);
    const T* slopes = all.data();
    each_chunk(pass, [&](RegionWorker<T>& worker, int64_t, int64_t region, int64_t begin, int64_t end) {
      const T* own = slopes + region * each;
      worker.template grad_sigmoid<Soft, Mode>(pass, {own[0], own[1], own[2]}, region, begin, end);
    });
  }
  template <class T, bool Planes, class Coefficients>
  static void grad_softmax(RegionPass<T> pass, const Coefficients& of, const T* planes) {
    int64_t each = Planes ? 1 : 2 * pass.slots;
    const std::vector<T> all = every(pass, each, of);
    const T* coefficients = all.data();
    each_chunk(pass, [&](RegionWorker<T>& worker, int64_t, int64_t region, int64_t begin, int64_t end) {
      worker.template grad_softmax<Planes>(coefficients + region * each, planes, region, begin, end);
    });
  }

  // See RegionWorker. Planes are counted over the classes of all regions.
  template <class T, bool Softmax>
  static void describe(const char* op, RegionPass<T> pass, T* max, T* inverse, int32_t* label) {
    std::vector<int64_t> bad(size_t(pass.all_chunks()));
    each_chunk(pass, [&](RegionWorker<T>& worker, int64_t chunk, int64_t region, int64_t begin, int64_t end) {
      worker.template describe<Softmax>(region, begin, end, max, inverse, label);
      bad[size_t(chunk)] = worker.bad_class;
    });
    check_classes<T>(op, pass.regions, bad);
  }
  template <class T, bool Softmax>
  static void keys(RegionPass<T> pass, int64_t first, int64_t planes, const T* max, const T* inverse,
                   const int32_t* label, typename Key<T>::Bits* key) {
    int64_t pixels = pass.regions.pixels.numel, classes = pass.regions.classes;
    RegionPass<T> of_planes = pass;
    of_planes.regions.count = planes;
    each_chunk(of_planes, [&](RegionWorker<T>& worker, int64_t, int64_t plane, int64_t begin, int64_t end) {
      int64_t region = (first + plane) / classes, c = (first + plane) % classes;
      worker.template keys<Softmax>(region, c, begin, end, max, inverse, label, key + plane * pixels);
    });
  }

 private:
  // All coefficients, `each` a region.
  template <class T, class Coefficients>
  static std::vector<T> every(const RegionPass<T>& pass, int64_t each, const Coefficients& of) {
    std::vector<T> all(size_t(pass.regions.count * each));
    for (int64_t region = 0; region < pass.regions.count; region++) {
      const double factor = of.factor(region);
      for (int64_t i = region * each; i < (region + 1) * each; i++) all[size_t(i)] = of(factor, i);
    }
    return all;
  }
  template <class T>
  static void check_classes(const char* op, const Regions& r, const std::vector<int64_t>& bad) {
    for (int64_t b : bad)
      if (b != RegionWorker<T>::kNone)
        fail(op, "a class index in [0, ", r.classes, ") or ignore_index ", r.ignore_index, ", got ", b);
  }
  // each(worker, chunk, region, begin, end) over the chunks of a pass, on torch's threads.
  template <class T, class Each>
  static void each_chunk(const RegionPass<T>& pass, Each each) {
    int64_t pixels = pass.regions.pixels.numel;
    int64_t cost = std::max<int64_t>(1, std::min(pass.chunk, pixels) * pass.regions.classes);
    torch::stable::parallel_for(0, pass.all_chunks(), std::max<int64_t>(1, kChunk / cost),
                                [&](int64_t first, int64_t last) {
                                  RegionWorker<T> worker(pass.regions);
                                  for (int64_t chunk = first; chunk < last; chunk++) {
                                    int64_t region = chunk / pass.chunks, begin = chunk % pass.chunks * pass.chunk;
                                    each(worker, chunk, region, begin, std::min(pixels, begin + pass.chunk));
                                  }
                                });
  }
};

}  // namespace lossreg::cpu
