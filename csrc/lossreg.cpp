// One family of ops on the CPU: its schemas and its kernels. CMake compiles this file once for each header in
// formulas/.
#include LOSSREG_FAMILY
#include "cpu.h"
#include "register.h"

STABLE_TORCH_LIBRARY_FRAGMENT(lossreg, m) {
  lossreg::enter([&] { lossreg::define(m, lossreg::Ops{}); });
}
STABLE_TORCH_LIBRARY_IMPL(lossreg, CPU, m) {
  lossreg::enter([&] { lossreg::implement<lossreg::Cpu>(m, lossreg::Ops{}); });
}

// The same kernels under a second name, to which Python attaches nothing: what Inductor's code calls, autograd and
// autocast being done by then. A thread that runs a deployed package never waits for Python's interpreter there.
STABLE_TORCH_LIBRARY_FRAGMENT(lossreg_kernels, m) {
  lossreg::enter([&] { lossreg::define(m, lossreg::Ops{}); });
}
STABLE_TORCH_LIBRARY_IMPL(lossreg_kernels, CPU, m) {
  lossreg::enter([&] { lossreg::implement<lossreg::Cpu>(m, lossreg::Ops{}); });
}
