#pragma once
// A box formula as a function of eight numbers, the coordinates of both boxes, or of nine: with the third tensor.
#include <array>
#include <utility>

#include "skeletons/boxwise/formula.h"

namespace lossreg {

template <class F, bool Third, class Make = decltype(&F::make)>
struct BoxFunction;
template <class F, bool Third, class... Option>
struct BoxFunction<F, Third, F (*)(Option...)> {
  static constexpr auto name = F::name, args = F::args;
  static constexpr int inputs = Third ? 9 : 8, gradients = 8;
  F f;

  static BoxFunction make(Option... option) {
    BoxFunction function{F::make(option...)};
    if constexpr (F::inputs == 3) function.f.has_third = Third;
    return function;
  }
  // Whether the third tensor came is known here: its modes are no choice of the options'.
  static constexpr int modes = F::inputs == 3 ? 1 : mode_count<F>();
  int mode() const { return F::inputs == 3 ? 0 : mode_of(f); }
  template <int Mode>
  BoxBody<F, F::inputs == 3 ? int(Third) : Mode> body() const {
    return {f};
  }

  template <class T>
  struct Call {
    T a[4], b[4], third = T(1);
  };
  template <class T, class... X>
  static Call<T> call(T first, X... x) {
    T all[] = {first, x...};
    Call<T> c;
    for (int k = 0; k < 4; k++) c.a[k] = all[k], c.b[k] = all[4 + k];
    if constexpr (Third) c.third = all[8];
    return c;
  }
  template <int Mode, class T, class... X>
  T value(T first, X... x) const {
    Call<T> c = call(first, x...);
    return body<Mode>().value(c.a, c.b, c.third);
  }
  template <int Mode, class T, class... X>
  Gradients<T, 8> grad(T first, X... x) const {
    Call<T> c = call(first, x...);
    T da[4], db[4];
    body<Mode>().grad(c.a, c.b, c.third, da, db);
    Gradients<T, 8> g;
    for (int k = 0; k < 4; k++) g.of[k] = da[k], g.of[4 + k] = db[k];
    return g;
  }

  // Puts the corners in order. False where edges coincide: there the slopes of minimum and maximum are a convention.
  template <class Point>
  static bool arrange(Point& x) {
    for (int low : {0, 1, 4, 5})
      if (x[low] > x[low + 2]) std::swap(x[low], x[low + 2]);
    for (int axis : {0, 1})
      for (int k : {axis, axis + 2, axis + 4, axis + 6})
        for (int j = axis; j < k; j += 2)
          if (x[j] == x[k]) return false;
    return true;
  }
};

}  // namespace lossreg
