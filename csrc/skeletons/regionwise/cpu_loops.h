#pragma once
// The vector loops of the CPU's region kernels, over n pixels next to each other and one class of them. Every loop
// reads and writes; the mathematics is that of formula.h.
//
// An ignored pixel has probability 0 of every class, and no class: so it adds nothing anywhere.
#include "../../cpu/tiles.h"
#include "formula.h"

namespace lossreg::cpu {

template <class T>
LOSSREG_CLONES void sigmoid_plane(T* q, const T* x, const int32_t* label, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T s = sigmoid(x[i]);
    q[i] = label[i] == kIgnored ? T(0) : s;
  }
}
template <class T>
LOSSREG_CLONES void raise_all(T* max, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) max[i] = greater(max[i], x[i]);
}
template <class T>
LOSSREG_CLONES void exp_plane(T* e, T* sum, const T* max, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    e[i] = exp_negative(x[i] - max[i]);
    sum[i] += e[i];
  }
}
template <class T>
LOSSREG_CLONES void invert_all(T* sum, const T* max, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) sum[i] = inverse_of_sum(sum[i], max[i]);
}
template <class T>
LOSSREG_CLONES void scale_plane(T* q, const T* inverse, const int32_t* label, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T p = q[i] * inverse[i];
    q[i] = label[i] == kIgnored ? T(0) : p;
  }
}
// Adds the sums of q y, q^p and y^p.
template <class T, bool Soft, int Mode>
LOSSREG_CLONES void sum_plane(Power power, const T* q, const T* y, const int32_t* label, int32_t c, double weight,
                              double* sums, int64_t n) {
  T overlap = 0, of_q = 0, of_y = 0;
#pragma omp simd reduction(+ : overlap, of_q, of_y)
  for (int64_t i = 0; i < n; i++) {
    const T t = Soft ? y[i] : label[i] == c ? T(1) : T(0);
    const OverlapTerms<T> terms = overlap_terms<Soft, Mode>(power, q[i], t);
    overlap += terms.overlap;
    of_q += terms.of_q;
    of_y += terms.of_y;
  }
  sums[0] += weight * double(overlap);
  sums[1] += weight * double(of_q);
  sums[2] += weight * double(of_y);
}
// The gradients in x, of which q is the sigmoid, and in y.
template <class T, bool Soft, int Mode>
LOSSREG_CLONES void grad_sigmoid_plane(Power power, OverlapSlopes<T> of_region, T* grad_x, T* grad_y, const T* x,
                                       const T* y, const int32_t* label, int32_t c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const T t = Soft ? y[i] : label[i] == c ? T(1) : T(0);
    const PixelSlopes<T> slopes = sigmoid_overlap_slopes<Mode>(power, of_region, x[i], t);
    grad_x[i] = !Soft && label[i] == kIgnored ? T(0) : slopes.in_score;
    if constexpr (Soft) grad_y[i] = slopes.in_target;
  }
}
// The gradient in the probability of pixel i: a [c = label] + b, or where a plane holds it, a u.
template <class T, bool Planes>
HD T upstream(T a, T b, const T* u, const int32_t* label, int32_t c, int64_t i) {
  if constexpr (Planes) return a * u[i];
  return class_slope(a, b, label[i] == c);
}
// dot += q u
template <class T, bool Planes>
LOSSREG_CLONES void dot_plane(T* dot, T a, T b, const T* q, const T* u, const int32_t* label, int32_t c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) dot[i] += q[i] * upstream<T, Planes>(a, b, u, label, c, i);
}
template <class T, bool Planes>
LOSSREG_CLONES void grad_softmax_plane(T* grad, T a, T b, const T* q, const T* dot, const T* u, const int32_t* label,
                                       int32_t c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    T d = softmax_slope(q[i], upstream<T, Planes>(a, b, u, label, c, i), dot[i]);
    grad[i] = label[i] == kIgnored ? T(0) : d;
  }
}

// The sort keys of errors: see Key. Of |[c = label] - softmax(x)_c|, and of relu(1 - x y) where there are no
// statistics.
template <class T, bool Softmax>
LOSSREG_CLONES void key_plane(typename Key<T>::Bits* key, const T* x, const T* max, const T* inverse,
                              const int32_t* label, int32_t c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const T xi = x[i], m = Softmax ? max[i] : T(0), s = Softmax ? inverse[i] : T(0);
    const int32_t l = label[i];
    T error = Softmax ? region_error(exp_negative(xi - m) * s, l == c) : hinge_error(xi, l == c);
    key[i] = l == kIgnored ? Key<T>::ignored : Key<T>::of(error);
  }
}

}  // namespace lossreg::cpu
