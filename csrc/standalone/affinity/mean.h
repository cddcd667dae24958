#pragma once
// The mean over pairs of pixels, of which there may be none.
#include "../../skeletons/standalone.h"

namespace lossreg {

// Writes the mean of the terms, which is 0 if there are none, and how many there are.
struct MeanOrZero {
  Operand out;
  double* terms;
  double per_count;

  HD void operator()(const double (&sums)[2]) const {
    *terms = sums[1] * per_count;
    put(out, 0, *terms > 0 ? sums[0] / *terms : 0.0);
  }
};
// grad_output divided by the number of terms.
template <class T>
HD T gradient_scale(const Operand& grad_output, const double* terms) {
  return T(*terms > 0 ? get<double>(grad_output, 0) / *terms : 0.0);
}

}  // namespace lossreg
