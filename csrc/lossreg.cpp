// One family of ops on the CPU: its schemas and its kernels. CMake compiles this file once for each header in
// formulas/.
#include LOSSREG_FAMILY
#include "cpu.h"
#include "register.h"

STABLE_TORCH_LIBRARY_FRAGMENT(lossreg, m) {
  lossreg::define(m, lossreg::Ops{});
}
STABLE_TORCH_LIBRARY_IMPL(lossreg, CPU, m) {
  lossreg::implement<lossreg::Cpu>(m, lossreg::Ops{});
}
