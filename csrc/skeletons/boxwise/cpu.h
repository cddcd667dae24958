#pragma once
// Box losses on the CPU: tiles of pairs, and one vector loop over them. A tile keeps the N numbers of a box next to
// each other, as memory does: the loop takes them apart in registers, and contiguous boxes are not copied. GCC makes no
// vectors of numbers that are five apart: there a tile is an array of each of the N.
#include <atomic>

#include "../../cpu/chunks.h"
#include "../../cpu/tiles.h"
#include "kernel.h"

namespace lossreg::cpu {

constexpr int64_t kBoxTile = 256;  // pairs
constexpr int64_t kBoxChunk = 1 << 12;

template <int N, class T, class S>
LOSSREG_CLONES void widen_boxes(const S* from, int64_t stride, int64_t coordinate, T* to, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    for (int c = 0; c < N; c++) to[N * i + c] = widen<T>(from[i * stride + c * coordinate]);
}
template <int N, class T, class S>
LOSSREG_CLONES void narrow_boxes(const T* from, S* to, int64_t stride, int64_t coordinate, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    for (int c = 0; c < N; c++) to[i * stride + c * coordinate] = Narrow<S>::from(from[N * i + c]);
}

template <int N>
constexpr bool in_arrays = (N & (N - 1)) != 0;
// Where the tile has word k of the `count` words of box i.
template <int N>
HD int64_t place_in_tile(int64_t i, int k, int count) {
  return in_arrays<N> ? k * kBoxTile + i : count * i + k;
}

// Reads box i, which memory holds as S.
template <class S, class T, int N>
HD void take_box(const Word<S>* from, int64_t i, T (&box)[N]) {
  using L = Lane<S>;
  constexpr int count = N / L::width;
#pragma GCC unroll 8
  for (int k = 0; k < count; k++) {
    const Word<S> word = from[place_in_tile<N>(i, k, count)];
#pragma GCC unroll 2
    for (int l = 0; l < L::width; l++) box[k * L::width + l] = L::template get<T>(word, l);
  }
}
template <class S, class T, int N>
HD void put_box(Word<S>* to, int64_t i, T factor, const T (&box)[N]) {
  using L = Lane<S>;
  constexpr int count = N / L::width;
#pragma GCC unroll 8
  for (int k = 0; k < count; k++) {
    T x[L::width];
    for (int l = 0; l < L::width; l++) x[l] = factor * box[k * L::width + l];
    to[place_in_tile<N>(i, k, count)] = L::of(x);
  }
}
// The smallest of a box's width, its height and `low`. It is below 0 if an end lies before its beginning.
template <class T>
HD T least_size(const T (&a)[4], T low) {
  const T w = a[2] - a[0], h = a[3] - a[1], least = w < low ? w : low;
  return h < least ? h : least;
}
// A box of a centre and sizes has no ends.
template <class T>
HD T least_size(const T (&)[5], T low) {
  return low;
}
// Writes the values of n pairs. Returns true if the ends of a box are in the wrong order.
template <class T, class Body, class S>
LOSSREG_CLONES bool box_map_loop(Body body, const S* input, const S* target, T third, T* out, int64_t n) {
  constexpr int N = Body::numbers;
  const Word<S>*x = words(input), *y = words(target);
  T least = 0;
#pragma omp simd reduction(min : least)
  for (int64_t i = 0; i < n; i++) {
    T a[N], b[N];
    take_box<S>(x, i, a);
    take_box<S>(y, i, b);
    out[i] = body.value(a, b, third);
    least = least_size(a, least_size(b, least));
  }
  return least < T(0);
}
// Returns the sum of the values; `found` is what box_map_loop returns.
template <class T, class Body, class S>
LOSSREG_CLONES T box_sum_loop(Body body, const S* input, const S* target, T third, int64_t n, bool& found) {
  constexpr int N = Body::numbers;
  const Word<S>*x = words(input), *y = words(target);
  T sum = 0, least = 0;
#pragma omp simd reduction(+ : sum) reduction(min : least)
  for (int64_t i = 0; i < n; i++) {
    T a[N], b[N];
    take_box<S>(x, i, a);
    take_box<S>(y, i, b);
    sum += body.value(a, b, third);
    least = least_size(a, least_size(b, least));
  }
  found = least < T(0);
  return sum;
}
// Writes one gradient or both. The compiler leaves out what is needed for the other one alone.
template <class T, bool Input, bool Target, class Body, class S>
LOSSREG_CLONES void box_grad_loop(Body body, const S* input, const S* target, T third, const T* grad_output, T scale,
                                  S* grad_input, S* grad_target, int64_t n) {
  constexpr int N = Body::numbers;
  const Word<S>*x = words(input), *y = words(target);
  Word<S>*dx = words(grad_input), *dy = words(grad_target);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T a[N], b[N], da[N], db[N];
    take_box<S>(x, i, a);
    take_box<S>(y, i, b);
    body.grad(a, b, third, da, db);
    T factor = grad_output[i] * scale;
    if constexpr (Input) put_box<S>(dx, i, factor, da);
    if constexpr (Target) put_box<S>(dy, i, factor, db);
  }
}

// Both for the first box of each pair: the sum of the values, and the gradients times scale.
template <class T, class Body, class S>
LOSSREG_CLONES T box_sum_and_grad_loop(Body body, const S* input, const S* target, T third, T scale, S* grad_input,
                                       int64_t n, bool& found) {
  constexpr int N = Body::numbers;
  const Word<S>*x = words(input), *y = words(target);
  Word<S>* dx = words(grad_input);
  T sum = 0, least = 0;
#pragma omp simd reduction(+ : sum) reduction(min : least)
  for (int64_t i = 0; i < n; i++) {
    T a[N], b[N], da[N], db[N];
    take_box<S>(x, i, a);
    take_box<S>(y, i, b);
    sum += body.value(a, b, third);
    body.grad(a, b, third, da, db);
    put_box<S>(dx, i, scale, da);
    least = least_size(a, least_size(b, least));
  }
  found = least < T(0);
  return sum;
}

// The boxes of operand k from `begin` on, if memory holds them as a tile does: numbers side by side, box after box, as
// T. Else null.
template <int N, class T>
T* boxes_in_place(const Boxes& boxes, Boxes::Role k, int64_t begin) {
  if constexpr (in_arrays<N>) return nullptr;
  const Operand& o = boxes.it.operand[k];
  bool packed = boxes.coordinate[k] == 1 && (boxes.it.dims == 0 || (boxes.it.dims == 1 && o.stride[0] == N));
  return packed && o.dtype == dtype_for<T> ? static_cast<T*>(o.data) + N * begin : nullptr;
}
// Does memory hold all boxes so, as S?
template <int N, class S>
bool are_in_place(const Boxes& boxes) {
  for (int k = 0; k < Boxes::kRoles; k++)
    if (Boxes::is_box(Boxes::Role(k)) && boxes.it.operand[k].data && !boxes_in_place<N, S>(boxes, Boxes::Role(k), 0))
      return false;
  return true;
}
template <int N, class T>
const T* read_boxes(const Boxes& boxes, Boxes::Role k, int64_t begin, int64_t n, T* buffer) {
  if (const T* there = boxes_in_place<N, T>(boxes, k, begin)) return there;
  if constexpr (std::is_arithmetic_v<T>) {
    const Operand& o = boxes.it.operand[k];
    int64_t coordinate = boxes.coordinate[k];
    walk(boxes.it, k, begin, n, [&](int64_t done, int64_t offset, int64_t stride, int64_t length) {
      with_storage(o.dtype, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        const S* from = static_cast<const S*>(o.data) + offset;
        if constexpr (in_arrays<N>)
          for (int c = 0; c < N; c++)
            widen_all<T, S>(from + c * coordinate, stride, buffer + c * kBoxTile + done, length);
        else if (coordinate == 1 && stride == N) widen_all<T, S>(from, 1, buffer + N * done, N * length);
        else widen_boxes<N, T, S>(from, stride, coordinate, buffer + N * done, length);
      });
    });
  }
  return buffer;
}
// Where a loop writes boxes: straight into memory, if that holds them as a tile does; else into the buffer, from which
// write_boxes() takes them.
template <int N, class T>
T* result_boxes(const Boxes& boxes, Boxes::Role k, int64_t begin, T* buffer) {
  T* there = boxes.it.operand[k].data ? boxes_in_place<N, T>(boxes, k, begin) : nullptr;
  return there ? there : buffer;
}
template <int N, class T>
void write_boxes(const Boxes& boxes, Boxes::Role k, int64_t begin, int64_t n, const T* tile, const T* buffer) {
  const Operand& o = boxes.it.operand[k];
  if (!o.data || tile != buffer) return;  // nobody asked for it, or it is there already
  if constexpr (std::is_arithmetic_v<T>) {
    int64_t coordinate = boxes.coordinate[k];
    walk(boxes.it, k, begin, n, [&](int64_t done, int64_t offset, int64_t stride, int64_t length) {
      with_floating_storage(o.dtype, [&](auto* tag) {
        using S = std::remove_pointer_t<decltype(tag)>;
        S* to = static_cast<S*>(o.data) + offset;
        if constexpr (in_arrays<N>)
          for (int c = 0; c < N; c++)
            narrow_all<T, S>(buffer + c * kBoxTile + done, to + c * coordinate, stride, length);
        else if (coordinate == 1 && stride == N) narrow_all<T, S>(buffer + N * done, to, 1, N * length);
        else narrow_boxes<N, T, S>(buffer + N * done, to, stride, coordinate, length);
      });
    });
  }
}

struct BoxKernels {
  template <class T, class Body>
  static void map(const Boxes& boxes, Body body) {
    std::atomic<bool> reversed{false};
    auto values = [&](int64_t, int64_t begin, int64_t n, const auto* a, const auto* b, T third) {
      alignas(64) T buffer[kBoxTile];
      T* out = result_tile(boxes.it, Boxes::kValue, begin, buffer);
      if (box_map_loop(body, a, b, third, out, n)) reversed = true;
      write_tile(boxes.it, Boxes::kValue, begin, n, out, buffer);
    };
    each_tile<T, Body::numbers, Sweep::backward>(boxes, values);
    warn_of_order<Body>(reversed);
  }
  template <class T, class Body>
  static void sum(const Boxes& boxes, Body body, double scale, const Tensor& out, DType dtype) {
    sum_tiles<T, Body>(boxes, scale, out, dtype,
                       [&](int64_t, int64_t n, const auto* a, const auto* b, T third, bool& found) {
                         return box_sum_loop(body, a, b, third, n, found);
                       });
  }
  template <class T, class Body>
  static void sum_and_grad(const Boxes& boxes, Body body, double scale, const Tensor& out, DType dtype) {
    constexpr int N = Body::numbers;
    sum_tiles<T, Body>(boxes, scale, out, dtype,
                       [&](int64_t begin, int64_t n, const auto* a, const auto* b, T third, bool& found) {
                         using S = std::remove_const_t<std::remove_pointer_t<decltype(a)>>;
                         alignas(64) S buffer[N * kBoxTile];
                         S* da = result_boxes<N>(boxes, Boxes::kGradInput, begin, buffer);
                         const T sum = box_sum_and_grad_loop(body, a, b, third, T(scale), da, n, found);
                         write_boxes<N>(boxes, Boxes::kGradInput, begin, n, da, buffer);
                         return sum;
                       });
  }
  template <class T, class Body>
  static void grad(const Boxes& boxes, Body body, double scale) {
    constexpr int N = Body::numbers;
    const Operand& grad_output = boxes.it.operand[Boxes::kValue];
    bool for_input = boxes.it.operand[Boxes::kGradInput].data, for_target = boxes.it.operand[Boxes::kGradTarget].data;
    auto gradients = [&](int64_t, int64_t begin, int64_t n, const auto* a, const auto* b, T third) {
      using S = std::remove_const_t<std::remove_pointer_t<decltype(a)>>;
      auto loop = !for_target  ? box_grad_loop<T, true, false, Body, S>
                  : !for_input ? box_grad_loop<T, false, true, Body, S>
                               : box_grad_loop<T, true, true, Body, S>;
      alignas(64) T factors[kBoxTile];
      alignas(64) S buffers[2][N * kBoxTile];
      if (grad_output.uniform) std::fill(factors, factors + n, one_number<T>(grad_output));
      const T* g = read_tile(boxes.it, Boxes::kValue, begin, n, factors);
      S* da = result_boxes<N>(boxes, Boxes::kGradInput, begin, buffers[0]);
      S* db = result_boxes<N>(boxes, Boxes::kGradTarget, begin, buffers[1]);
      loop(body, a, b, third, g, T(scale), da, db, n);
      write_boxes<N>(boxes, Boxes::kGradInput, begin, n, da, buffers[0]);
      write_boxes<N>(boxes, Boxes::kGradTarget, begin, n, db, buffers[1]);
    };
    each_tile<T, N, Sweep::backward>(boxes, gradients);
  }

 private:
  template <class Body>
  static void warn_of_order(const std::atomic<bool>& reversed) {
    if (reversed)
      warn_once<typename Body::Formula>("boxes x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, got one that isn't");
  }
  // Writes scale times the sum of of_tile(begin, n, input, target, third, found) over the tiles; `found`: is the order
  // of a box's ends wrong?
  template <class T, class Body, class OfTile>
  static void sum_tiles(const Boxes& boxes, double scale, const Tensor& out, DType dtype, OfTile of_tile) {
    std::vector<double> partial(size_t(chunks(boxes.it.numel, kBoxChunk)));
    std::atomic<bool> reversed{false};
    each_tile<T, Body::numbers, Sweep::forward>(
        boxes, [&](int64_t chunk, int64_t begin, int64_t n, const auto* a, const auto* b, T third) {
          bool found = false;
          partial[size_t(chunk)] += double(of_tile(begin, n, a, b, third, found));
          if (found) reversed = true;
        });
    warn_of_order<Body>(reversed);
    double total = 0;
    for (double p : partial) total += p;
    write_scalar(out, dtype, total * scale);
  }
  // Calls each(chunk, begin, n, input, target, third) for tiles of n pairs: with boxes of bfloat16, if memory holds all
  // of them so, else of T.
  template <class T, int N, Sweep sweep, class Each>
  static void each_tile(const Boxes& boxes, Each each) {
    // whole words a box
    if constexpr (std::is_same_v<T, float> && N % Lane<BFloat16>::width == 0)
      if (are_in_place<N, BFloat16>(boxes)) return each_tile_of<T, BFloat16, N, sweep>(boxes, each);
    each_tile_of<T, T, N, sweep>(boxes, each);
  }
  template <class T, class S, int N, Sweep sweep, class Each>
  static void each_tile_of(const Boxes& boxes, Each each) {
    T third = one_number<T>(boxes.it.operand[Boxes::kThird]);
    each_chunk<sweep>(boxes.it.numel, kBoxChunk, [&](int64_t chunk, int64_t begin, int64_t end) {
      alignas(64) S buffers[2][N * kBoxTile];
      for (int64_t b = begin; b < end; b += kBoxTile) {
        int64_t n = std::min(kBoxTile, end - b);
        const S* input = read_boxes<N>(boxes, Boxes::kInput, b, n, buffers[0]);
        const S* target = read_boxes<N>(boxes, Boxes::kTarget, b, n, buffers[1]);
        each(chunk, b, n, input, target, third);
      }
    });
  }
};

}  // namespace lossreg::cpu
