#pragma once
// Two boxes against each other, as box formulas see them. All that a formula knows of a pair are five lengths an axis;
// so its gradient is its slopes in these, and the way down to the coordinates x1, y1, x2, y2 of each is written once.
//   value(pair), grad(pair) -> slopes of the value in the pair's lengths
// of an op of three tensors get the third, one number for all pairs, as well. A formula of rotated boxes declares
//   numbers = 5
// and sees a RotatedPair: of that, the slopes are those in the boxes' own numbers.
#include "../formula.h"

namespace lossreg {

// The intervals [a1, a2] of input and [b1, b2] of target along one axis; or a formula's slopes in these lengths.
template <class T>
struct BoxAxis {
  T size, target_size;  // a2 - a1, b2 - b1
  T overlap;            // of what both hold; 0 where they are apart
  T hull;               // of the smallest interval that holds both
  T offset;             // from target's centre to input's
};
template <class T>
struct BoxPair {
  BoxAxis<T> x, y;
};
// A box whose side w is turned by an angle, in radians, from the x axis to the y axis; or a formula's slopes in these.
template <class T>
struct RotatedBox {
  T x, y, w, h, angle;  // x, y: of the centre
};
template <class T>
struct RotatedPair {
  RotatedBox<T> input, target;
};

// The slope of smaller(a, b) in a, and of larger(a, b) in b: half at a tie, as in torch.minimum and torch.maximum.
template <class T>
HD T share(T a, T b) {
  return a < b ? T(1) : a == b ? T(0.5) : T(0);
}

template <class T>
HD BoxAxis<T> axis_of(T a1, T a2, T b1, T b2) {
  T overlap = smaller(a2, b2) - larger(a1, b1), hull = larger(a2, b2) - smaller(a1, b1);
  return {a2 - a1, b2 - b1, relu(overlap), hull, T(0.5) * ((a1 - b1) + (a2 - b2))};
}
// The slopes in a1, a2, b1, b2.
template <class T>
HD Gradients<T, 4> axis_grad(const BoxAxis<T>& g, T a1, T a2, T b1, T b2) {
  T a_ends_first = share(a2, b2), b_ends_first = T(1) - a_ends_first;
  T b_begins_first = share(b1, a1), a_begins_first = T(1) - b_begins_first;
  // intervals that touch belong to the slope, as in torch.clamp
  T overlap = smaller(a2, b2) - larger(a1, b1) < T(0) ? T(0) : g.overlap;
  T half = T(0.5) * g.offset;
  return {half - g.size - (overlap * b_begins_first + g.hull * a_begins_first),
          half + g.size + (overlap * a_ends_first + g.hull * b_ends_first),
          -half - g.target_size - (overlap * a_begins_first + g.hull * b_begins_first),
          -half + g.target_size + (overlap * b_ends_first + g.hull * a_ends_first)};
}

template <class F>
constexpr int numbers_of_box() {
  if constexpr (has<declared::numbers, F>) return F::numbers;
  else return 4;
}

// A formula as the backends call it: over the numbers of a and of b.
template <class F, int Mode>
struct BoxBody {
  using Formula = F;
  static constexpr int numbers = numbers_of_box<F>();
  F f;
  template <class T>
  HD static BoxPair<T> pair_of(const T (&a)[4], const T (&b)[4]) {
    return {axis_of(a[0], a[2], b[0], b[2]), axis_of(a[1], a[3], b[1], b[3])};
  }
  template <class T>
  HD static RotatedPair<T> pair_of(const T (&a)[5], const T (&b)[5]) {
    return {{a[0], a[1], a[2], a[3], a[4]}, {b[0], b[1], b[2], b[3], b[4]}};
  }
  template <class T>
  HD T value(const T (&a)[numbers], const T (&b)[numbers], [[maybe_unused]] T third) const {
    if constexpr (F::inputs == 3) return value_of<Mode, T>(f, pair_of(a, b), third);
    else return value_of<Mode, T>(f, pair_of(a, b));
  }
  template <class T>
  HD void grad(const T (&a)[numbers], const T (&b)[numbers], [[maybe_unused]] T third, T (&da)[numbers],
               T (&db)[numbers]) const {
    if constexpr (F::inputs == 3) spread(grad_of<Mode>(f, pair_of(a, b), third), a, b, da, db);
    else spread(grad_of<Mode>(f, pair_of(a, b)), a, b, da, db);
  }

 private:
  // From a formula's slopes to those in the numbers.
  template <class T>
  HD static void spread(const BoxPair<T>& g, const T (&a)[4], const T (&b)[4], T (&da)[4], T (&db)[4]) {
    Gradients<T, 4> x = axis_grad(g.x, a[0], a[2], b[0], b[2]), y = axis_grad(g.y, a[1], a[3], b[1], b[3]);
    for (int end = 0; end < 2; end++) {
      da[2 * end] = x.of[end];
      da[2 * end + 1] = y.of[end];
      db[2 * end] = x.of[2 + end];
      db[2 * end + 1] = y.of[2 + end];
    }
  }
  template <class T>
  HD static void spread(const RotatedPair<T>& g, const T (&)[5], const T (&)[5], T (&da)[5], T (&db)[5]) {
    write(g.input, da);
    write(g.target, db);
  }
  template <class T>
  HD static void write(const RotatedBox<T>& g, T (&to)[5]) {
    to[0] = g.x;
    to[1] = g.y;
    to[2] = g.w;
    to[3] = g.h;
    to[4] = g.angle;
  }
};

}  // namespace lossreg
