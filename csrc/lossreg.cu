// The same family on CUDA.
#include LOSSREG_FAMILY
#include "cuda.h"
#include "register.h"

STABLE_TORCH_LIBRARY_IMPL(lossreg, CUDA, m) {
  lossreg::implement<lossreg::Cuda>(m, lossreg::Ops{});
}
