#pragma once
// A library's entry into the dispatcher. It happens while the library is loaded, where an exception would end the
// process: what the dispatcher refuses is kept, and asked for by who loads the library.
#include <exception>
#include <iostream>
#include <string>

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

extern "C" __attribute__((visibility("default"), weak)) const char* lossreg_refused() {
  return lossreg::refused().c_str();
}
