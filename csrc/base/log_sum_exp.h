#pragma once
// Log-sum-exp, log sum_c e^(z_c), as max + log sum_c e^(z_c - max), where nothing overflows. The greatest number and
// the logarithm are kept apart: their sum has no room for the second where the first is large.
//
// A NaN never becomes the greatest number; it comes out through the sum of exponentials, which it makes NaN.
#include <limits>

#include "math.h"

namespace lossreg {

// The greater of two; a NaN in z is passed over.
template <class T>
HD T greater(T max, T z) {
  return z > max ? z : max;
}
#if defined(LOSSREG_ON_DEVICE)
__device__ __forceinline__ float greater(float max, float z) {
  return ::fmaxf(max, z);  // one instruction
}
#endif

// One more number z beside a maximum, and how sums of u_c e^(z_c - max) take it in: one exponential scales what was
// summed where z is the greatest, or else z itself.
template <class T>
struct Rise {
  bool higher;
  T e;  // e^-|z - max|
  HD T joined(T sum, T u) const {
    const T raised = sum * e + u, added = sum + e * u;
    return higher ? raised : added;
  }
};
template <class T>
HD Rise<T> raised(T& max, T z) {
  const T rise = z - max;
  max = greater(max, z);
  return {rise > T(0), exp_negative(-abs(rise))};
}

// K more numbers z into a maximum and the sum of e^(z - max); more than one at once wait for one another less. Two
// numbers by reference and no struct: gcc makes no vector loop over structs.
template <int K, class T>
HD void add_exponentials(T& max, T& sum, const T (&z)[K]) {
  if constexpr (K == 1) {
    sum = raised(max, z[0]).joined(sum, T(1));
  } else {
    T top = max;
    for (int k = 0; k < K; k++) top = greater(top, z[k]);
    T total = sum * exp_negative(max - top);
    for (int k = 0; k < K; k++) total += exp_negative(z[k] - top);
    sum = total;
    max = top;
  }
}

template <class T>
struct LogSumExp {
  T max, sum;  // the greatest number so far, and the sum of e^(z - max)

  // The lowest number and not -inf: a first number of -inf adds e^-inf = 0 then, and no e^(-inf + inf).
  HD static LogSumExp empty() { return {std::numeric_limits<T>::lowest(), T(0)}; }

  HD void raise(T top) {
    sum *= exp_negative(max - top);
    max = top;
  }
  HD void add(T z) { add_exponentials<1>(max, sum, {z}); }
  // z = x + bias. The exponent adds the bias last, so that a large x keeps its digits.
  HD void add(T x, T bias) {
    const T z = x + bias;
    if (z > max) raise(z);
    sum += exp_negative((x - max) + bias);
  }
  HD void merge(LogSumExp other) {
    const T top = greater(max, other.max);
    raise(top);
    other.raise(top);
    sum += other.sum;
  }
};

// The logarithm of the sum of e^(z - max), NaN where max is infinite: the sum is that of e^(inf - inf) there, whether
// or not it was taken so.
template <class T>
HD T log_of_sum(T sum, T max) {
  const T y = log(sum);
  return max == T(INFINITY) ? T(NAN) : y;
}

// What e^(z - max) is multiplied with to be the softmax; NaN where max is infinite, for the same reason.
template <class T>
HD T inverse_of_sum(T sum, T max) {
  const T y = T(1) / sum;
  return max == T(INFINITY) ? T(NAN) : y;
}

// log(e^a + e^b + e^c), -inf where all three are. Of logarithms that grow with the length of a sequence: they are added
// up in double, and what they differ by is computed with in T.
template <class T>
HD double log_sum_exp(double a, double b, double c) {
  double high = a > b ? a : b, low = a > b ? b : a;
  double top = high > c ? high : c, middle = high > c ? c : high;
  double from = top == -INFINITY ? 0.0 : top;
  return top + double(log(T(1) + exp_negative(T(low - from)) + exp_negative(T(middle - from))));
}

}  // namespace lossreg
