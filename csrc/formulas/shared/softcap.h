#pragma once
#include "../../base/special.h"
#include "../../skeletons/formula.h"

namespace lossreg {

// c tanh(x / c), within (-c, c), as Gemma 2 has its scores, arXiv 2408.00118.
struct Softcap {
  Parameter cap, inverse;

  // 0 is none. Checked for the op of this name.
  static Softcap make(const char* op, double softcap) {
    expect(softcap >= 0 && softcap < INFINITY, op, "a finite softcap >= 0", softcap);
    return {softcap, softcap > 0 ? 1 / softcap : 0};
  }
  HD bool caps() const { return cap.exact > 0; }

  template <class T>
  HD T value(T x) const {
    return T(cap) * tanh(x * T(inverse));
  }
  // 1 - tanh^2 = 4 e / (1 + e)^2, e = e^(-2 |x / c|), which keeps its digits where tanh is nearly 1
  template <class T>
  HD T slope(T x) const {
    const T e = exp_negative(T(-2) * abs(x * T(inverse))), whole = T(1) + e;
    return T(4) * e / (whole * whole);
  }
};

}  // namespace lossreg
