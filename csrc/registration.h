#pragma once
// A library's entry into the dispatcher. It happens while the library is loaded, where an exception would end the
// process: what the dispatcher refuses is kept, and asked for by who loads the library.
#include <torch/headeronly/macros/Macros.h>

#include <exception>
#include <iostream>
#include <string>

// The namespace of the ops, torch.ops.lossreg, is the build's choice: two libraries in one process need two. The C++
// namespace stays, because a library exports none of it.
#ifndef LOSSREG_NAMESPACE
#define LOSSREG_NAMESPACE lossreg
#endif
// 1: the build was narrowed to some families.
#ifndef LOSSREG_PARTIAL
#define LOSSREG_PARTIAL 0
#endif
// The version of nvcc; empty: the library has no CUDA kernels.
#ifndef LOSSREG_CUDA_TOOLKIT
#define LOSSREG_CUDA_TOOLKIT ""
#endif
// The second name of the kernels, to which Python attaches nothing.
#define LOSSREG_KERNELS_NAMESPACE C10_CONCATENATE(LOSSREG_NAMESPACE, _kernels)

namespace lossreg {

// The op whose schema is being defined.
inline std::string& entering() {
  static std::string name;
  return name;
}
// The op that the dispatcher refused, because another library defines it already; empty: it refused none.
inline std::string& refused() {
  static std::string name;
  return name;
}

// Runs a part of the registration, unless an earlier part was refused: kernels of this library must not take the place
// of the other one's.
template <class Part>
void enter(Part part) {
  if (!refused().empty()) return;
  try {
    part();
  } catch (const std::exception& error) {
    refused() = entering();
    std::cerr << "lossreg: expected ops that no other library defines, got " << refused()
              << " for the second time; this library stays without effect (" << error.what() << ")" << std::endl;
  }
}

}  // namespace lossreg

// What a library says of itself, to whoever has loaded it and looks for these names in that very library.
#define LOSSREG_EXPORT extern "C" __attribute__((visibility("default"), weak))

LOSSREG_EXPORT const char* lossreg_refused() {
  return lossreg::refused().c_str();
}
LOSSREG_EXPORT const char* lossreg_namespace() {
  return C10_STRINGIZE(LOSSREG_NAMESPACE);
}
LOSSREG_EXPORT const char* lossreg_cuda_toolkit() {
  return LOSSREG_CUDA_TOOLKIT;
}
LOSSREG_EXPORT int lossreg_partial() {
  return LOSSREG_PARTIAL;
}
