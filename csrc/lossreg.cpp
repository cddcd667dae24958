// One family of ops on the CPU: its schemas and its kernels. CMake compiles this file once for each header in
// formulas/ and standalone/.
#include LOSSREG_FAMILY
#include "cpu.h"
#include "register.h"

static_assert(lossreg::detail::check_contract(lossreg::Ops{}));
static const bool entered = lossreg::detail::enter_schemas<lossreg::Ops>(LOSSREG_FAMILY) &&
                            lossreg::detail::enter_kernels<lossreg::Cpu, lossreg::Ops>("CPU", LOSSREG_FAMILY);
