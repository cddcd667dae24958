// The same family on CUDA.
#include LOSSREG_FAMILY
#include "cuda.h"
#include "register.h"

STABLE_TORCH_LIBRARY_IMPL(LOSSREG_NAMESPACE, CUDA, m) {
  lossreg::enter([&] { lossreg::implement<lossreg::Cuda>(m, lossreg::Ops{}); });
}
STABLE_TORCH_LIBRARY_IMPL(LOSSREG_KERNELS_NAMESPACE, CUDA, m) {
  lossreg::enter([&] { lossreg::implement<lossreg::Cuda>(m, lossreg::Ops{}); });
}
