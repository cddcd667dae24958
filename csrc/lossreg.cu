// The same family on CUDA.
#include LOSSREG_FAMILY
#include "cuda.h"
#include "register.h"

static const bool entered = lossreg::detail::enter_kernels<lossreg::Cuda, lossreg::Ops>("CUDA", LOSSREG_FAMILY);
