#pragma once
// A box formula as a function of the numbers of both boxes, eight or ten, and of one more with the third tensor.
#include <array>
#include <utility>

#include "skeletons/boxwise/formula.h"

namespace lossreg {

template <class F, bool Third, class Make = decltype(&F::make)>
struct BoxFunction;
template <class F, bool Third, class... Option>
struct BoxFunction<F, Third, F (*)(Option...)> {
  static constexpr auto name = F::name, args = F::args;
  static constexpr int numbers = numbers_of_box<F>(), gradients = 2 * numbers, inputs = gradients + Third;
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
    T a[numbers], b[numbers], third = T(1);
  };
  template <class T, class... X>
  static Call<T> call(T first, X... x) {
    T all[] = {first, x...};
    Call<T> c;
    for (int k = 0; k < numbers; k++) c.a[k] = all[k], c.b[k] = all[numbers + k];
    if constexpr (Third) c.third = all[gradients];
    return c;
  }
  template <int Mode, class T, class... X>
  T value(T first, X... x) const {
    Call<T> c = call(first, x...);
    return body<Mode>().value(c.a, c.b, c.third);
  }
  template <int Mode, class T, class... X>
  Gradients<T, gradients> grad(T first, X... x) const {
    Call<T> c = call(first, x...);
    T da[numbers], db[numbers];
    body<Mode>().grad(c.a, c.b, c.third, da, db);
    Gradients<T, gradients> g;
    for (int k = 0; k < numbers; k++) g.of[k] = da[k], g.of[numbers + k] = db[k];
    return g;
  }

  // Puts the corners in order. False where edges coincide: there the slopes of minimum and maximum are a convention.
  template <class Point>
  static bool arrange(Point& x) {
    if (numbers == 5) return true;  // a centre and sizes
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
