// One family of CUDA kernels, run on the CPU: torch.ops.lossreg_emulated.NAME.
#include "cuda_emulator.h"

#include LOSSREG_FAMILY
#include "cuda.h"
#include "register.h"

STABLE_TORCH_LIBRARY_FRAGMENT(lossreg_emulated, m) {
  lossreg::detail::define(m, lossreg::Ops{});
}
STABLE_TORCH_LIBRARY_IMPL(lossreg_emulated, CPU, m) {
  lossreg::detail::implement<lossreg::Cuda>(m, lossreg::Ops{});
}
// Here too, for what is refused before anything is launched: tensors on another device than the CPU's.
STABLE_TORCH_LIBRARY_IMPL(lossreg_emulated, Meta, m) {
  lossreg::detail::implement<lossreg::Cuda>(m, lossreg::Ops{});
}
