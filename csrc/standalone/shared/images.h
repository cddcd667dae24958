#pragma once
// Images of class scores with a label for each pixel, for ops that look at neighbouring pixels. Pixels are taken in
// strips of a row: long ones on the CPU, where a loop over a strip becomes a vector loop, and of one pixel on a GPU.
#include "../../skeletons/standalone.h"

namespace lossreg {

// Up to L neighbouring pixels in a row of an image, from column w on.
struct Strip {
  int64_t n, h, w;
  int length;
};

// Scores (N, C, H, W) of any strides, which are stored as S and computed with as T, and contiguous labels (N, H, W).
template <class T, class S, int L>
struct Images {
  using Compute = T;
  using Storage = S;
  static constexpr int kStrip = L;
  const S* scores;
  const int64_t* labels;
  int64_t stride[4], channels, height, width, ignore_index;

  HD int64_t strips() const { return (width + L - 1) / L; }  // of one row
  HD Strip strip(int64_t i) const {
    int64_t row = i / strips(), w = (i - row * strips()) * L;
    return {row / height, row % height, w, L == 1 ? 1 : int(width - w < L ? width - w : L)};
  }
  HD bool has_row(int64_t h) const { return h >= 0 && h < height; }

  // Which of N columns from w on are inside of the image: j in [first, last).
  template <int N>
  struct Columns {
    int first, last;
    Columns() = default;
    HD Columns(int64_t w, int64_t width)
        : first(int(w < 0 ? (-w < N ? -w : N) : 0)), last(int(width - w < N ? (width - w > 0 ? width - w : 0) : N)) {}
    // Calls use(j) for each of them. A GPU takes all N by constant indices, so that arrays of N stay in registers.
    template <class Use>
    HD void each(Use use) const {
      if constexpr (L == 1) {
        LOSSREG_UNROLL
        for (int j = 0; j < N; j++)
          if (j >= first && j < last) use(j);
      } else {
        for (int j = first; j < last; j++) use(j);
      }
    }
  };
  // Reads N scores of a row, from column w on, one channel after the other.
  template <int N>
  struct Reader {
    const S* at;  // column w of the next channel
    int64_t channel, step;
    Columns<N> columns;
    bool together;  // all N are in the image, side by side

    // The next channel, with 0 outside of the image: a pointer into the tensor, if that holds them all as numbers of T
    // side by side, else the buffer.
    HD const T* next(T (&buffer)[N]) {
      const S* from = at;
      at += channel;
      if constexpr (L > 1 && std::is_same_v<S, T>)
        if (together) return from;
      if (together) {
        for (int j = 0; j < N; j++) buffer[j] = widen<T>(from[j]);
        return buffer;
      }
      for (int j = 0; j < N; j++) buffer[j] = T(0);
      columns.each([&](int j) { buffer[j] = widen<T>(from[j * step]); });
      return buffer;
    }
  };
  // From channel c on; of a row that the image lacks, all are 0.
  template <int N>
  HD Reader<N> reader(int64_t n, int64_t c, int64_t h, int64_t w) const {
    Columns<N> columns(w, has_row(h) ? width : w);
    const S* at = scores + (n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3]);
    return {at, stride[1], stride[3], columns, stride[3] == 1 && columns.last - columns.first == N};
  }
  // The N labels from column w on, with ignore_index outside of the image.
  template <int N>
  HD void read_labels(int64_t n, int64_t h, int64_t w, int64_t (&label)[N]) const {
    const int64_t* row = labels + (n * height + h) * width;
    for (int j = 0; j < N; j++) label[j] = ignore_index;
    if (has_row(h)) Columns<N>(w, width).each([&](int j) { label[j] = row[w + j]; });
  }
};

// The tensors of one call, checked against each other.
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
    check_classes(F::name, "input", shape, shape[1]);
    check_class_indices(F::name, "target", labels_dtype);
    check_shape(F::name, "target", shape_of(target), {shape[0], shape[2], shape[3]}, "input", shape);
    labels = torch::stable::contiguous(torch::stable::to(target, ScalarType::Long));
  }

  int64_t pixels() const { return shape[0] * shape[2] * shape[3]; }
  // Checks what a backward pass gets beside the inputs, and returns the dtype of grad_output.
  DType check_grad(const Tensor& grad_output, const Tensor& state, int64_t state_size) const {
    check_state(F::name, state, {state_size}, DType::float64, input);
    return check_grad_output(F::name, grad_output, {}, input);
  }

  // Calls use(images, number of strips) with the type that the scores are stored in, and the one that is computed in
  // beside `other`.
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
          use(images, shape[0] * shape[2] * images.strips());
        }
      });
    });
  }
};

// The gradient in the scores, a tensor of any strides.
template <class S>
struct ScoreGradient {
  S* data;
  int64_t stride[4];

  explicit ScoreGradient(const Tensor& t) : data(static_cast<S*>(t.mutable_data_ptr())) {
    for (int d = 0; d < 4; d++) stride[d] = t.strides()[d];
  }
  template <class T>
  HD void write(const Strip& s, int64_t c, const T* g) const {
    S* row = data + (s.n * stride[0] + c * stride[1] + s.h * stride[2] + s.w * stride[3]);
    if (stride[3] == 1)
      for (int j = 0; j < s.length; j++) row[j] = Narrow<S>::from(g[j]);
    else
      for (int j = 0; j < s.length; j++) row[j * stride[3]] = Narrow<S>::from(g[j]);
  }
};

}  // namespace lossreg
