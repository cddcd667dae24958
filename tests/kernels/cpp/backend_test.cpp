// Every kernel of a family over NullBackend: what a skeleton or a written-out op asks of a backend, is in the contract.
// With LOSSREG_WITHOUT, over a backend that lacks that member. Compiled, never run.
#include LOSSREG_FAMILY
#include "register.h"

#if defined(LOSSREG_WITHOUT)
struct Lacking : lossreg::NullBackend {
 private:
  using LOSSREG_WITHOUT;
};
using Backend = Lacking;
#else
using Backend = lossreg::NullBackend;
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(lossreg, m) {
  lossreg::detail::define(m, lossreg::Ops{});
  lossreg::detail::implement<Backend>(m, lossreg::Ops{});
}
