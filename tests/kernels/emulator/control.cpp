// What the tests ask of the emulator, through ctypes.
#include "cuda_emulator.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void lossreg_emulator_seed(uint64_t seed) {
  emulator::random.seed(seed);
}
EXPORT void lossreg_emulator_forget() {
  emulator::launched.clear();
}
// How many kernels were launched since; their addresses, where there is room for them.
EXPORT int lossreg_emulator_launched(const void** kernels) {
  if (kernels) std::copy(emulator::launched.begin(), emulator::launched.end(), kernels);
  return int(emulator::launched.size());
}
