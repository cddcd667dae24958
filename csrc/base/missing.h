#pragma once
// The functions of C's mathematics that math.h has no version of. A formula that called one would find C's own, in the
// global namespace, without a word: for one element at a time, and on a GPU with a precision that nobody chose. These
// are found before it.
#include "compiler.h"

namespace lossreg {

template <class...>
constexpr bool has_version = false;

#define LOSSREG_MISSING(name)                                                         \
  template <class... X>                                                               \
  HD double name(X...) {                                                              \
    static_assert(has_version<X...>, "base/math.h has no " #name                      \
                                     "(): write the formula in what it has; on the "  \
                                     "host, where options are checked, std::" #name); \
    return 0;                                                                         \
  }
// The double's name and the float's.
#define LOSSREG_MISSING_BOTH(name) LOSSREG_MISSING(name) LOSSREG_MISSING(name##f)

LOSSREG_MISSING_BOTH(acos)
LOSSREG_MISSING_BOTH(acosh)
LOSSREG_MISSING_BOTH(asin)
LOSSREG_MISSING_BOTH(asinh)
LOSSREG_MISSING_BOTH(atan)
LOSSREG_MISSING_BOTH(atanh)
LOSSREG_MISSING_BOTH(cbrt)
LOSSREG_MISSING_BOTH(ceil)
LOSSREG_MISSING_BOTH(copysign)
LOSSREG_MISSING_BOTH(cos)
LOSSREG_MISSING_BOTH(cosh)
LOSSREG_MISSING_BOTH(erf)
LOSSREG_MISSING_BOTH(erfc)
LOSSREG_MISSING_BOTH(exp2)
LOSSREG_MISSING_BOTH(expm1)
LOSSREG_MISSING_BOTH(fabs)
LOSSREG_MISSING_BOTH(fdim)
LOSSREG_MISSING_BOTH(floor)
LOSSREG_MISSING_BOTH(fma)
LOSSREG_MISSING_BOTH(fmax)
LOSSREG_MISSING_BOTH(fmin)
LOSSREG_MISSING_BOTH(fmod)
LOSSREG_MISSING_BOTH(frexp)
LOSSREG_MISSING_BOTH(hypot)
LOSSREG_MISSING_BOTH(ilogb)
LOSSREG_MISSING_BOTH(ldexp)
LOSSREG_MISSING_BOTH(lgamma)
LOSSREG_MISSING_BOTH(llrint)
LOSSREG_MISSING_BOTH(llround)
LOSSREG_MISSING_BOTH(log10)
LOSSREG_MISSING_BOTH(log1p)
LOSSREG_MISSING_BOTH(log2)
LOSSREG_MISSING_BOTH(logb)
LOSSREG_MISSING_BOTH(lrint)
LOSSREG_MISSING_BOTH(lround)
LOSSREG_MISSING_BOTH(modf)
LOSSREG_MISSING_BOTH(nearbyint)
LOSSREG_MISSING_BOTH(nextafter)
LOSSREG_MISSING_BOTH(pow)
LOSSREG_MISSING_BOTH(remainder)
LOSSREG_MISSING_BOTH(rint)
LOSSREG_MISSING_BOTH(round)
LOSSREG_MISSING_BOTH(scalbn)
LOSSREG_MISSING_BOTH(sin)
LOSSREG_MISSING_BOTH(sinh)
LOSSREG_MISSING_BOTH(tan)
LOSSREG_MISSING_BOTH(tanh)
LOSSREG_MISSING_BOTH(tgamma)
LOSSREG_MISSING_BOTH(trunc)
LOSSREG_MISSING(atan2f)
LOSSREG_MISSING(expf)
LOSSREG_MISSING(logf)
LOSSREG_MISSING(sqrtf)

#undef LOSSREG_MISSING_BOTH
#undef LOSSREG_MISSING

}  // namespace lossreg
