// One family of ops on the CPU: its schemas and its kernels. CMake compiles this file once for each header in
// formulas/ and standalone/.
#include LOSSREG_FAMILY
#include "cpu.h"
#include "register.h"

STABLE_TORCH_LIBRARY_FRAGMENT(LOSSREG_NAMESPACE, m) {
  lossreg::enter([&] { lossreg::define(m, lossreg::Ops{}); });
}
STABLE_TORCH_LIBRARY_IMPL(LOSSREG_NAMESPACE, CPU, m) {
  lossreg::enter([&] { lossreg::implement<lossreg::Cpu>(m, lossreg::Ops{}); });
}

// The same kernels under a second name, to which Python attaches nothing: what Inductor's code calls, autograd and
// autocast being done by then. A thread that runs a deployed package never waits for Python's interpreter there.
STABLE_TORCH_LIBRARY_FRAGMENT(LOSSREG_KERNELS_NAMESPACE, m) {
  lossreg::enter([&] { lossreg::define(m, lossreg::Ops{}); });
}
STABLE_TORCH_LIBRARY_IMPL(LOSSREG_KERNELS_NAMESPACE, CPU, m) {
  lossreg::enter([&] { lossreg::implement<lossreg::Cpu>(m, lossreg::Ops{}); });
}
