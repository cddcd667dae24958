#pragma once
// What a launch that failed says to a user. It knows numbers alone, so that a test without a GPU can ask it.
#include <string>

namespace lossreg::cuda {

// Errors of CUDA's runtime that have a cause outside of this library; device.h checks the numbers.
constexpr int kDriverTooOld = 35, kNoCodeForDevice = 209, kPtxTooNew = 222;

struct LaunchFailure {
  int error;
  std::string words;     // CUDA's own for it
  int toolkit, driver;   // the versions that built the kernels and that runs them; 13020 is 13.2, 0 is none
  int capability;        // of the device: 90 is sm_90
  std::string compiled;  // for which the kernels were: "80, 90"
};

inline std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

inline std::string text_of(const LaunchFailure& f) {
  std::string text = "lossreg: expected a GPU", toolkit = "CUDA " + version_text(f.toolkit);
  std::string driver = f.driver ? "a driver of CUDA " + version_text(f.driver) : std::string("no driver");
  switch (f.error) {
    case kDriverTooOld:
      return text + "'s driver of CUDA " + std::to_string(f.toolkit / 1000) + ".0 or later for kernels built by " +
             toolkit + ", got " + driver + "; update the driver, or build with an older nvcc";
    case kPtxTooNew:
      return text + "'s driver that compiles PTX of " + toolkit + ", because there is no code for sm_" +
             std::to_string(f.capability) + " itself, got " + driver + "; update the driver, or build for that GPU";
    case kNoCodeForDevice:
      return text + " that the kernels were compiled for (" + f.compiled + "), got one of sm_" +
             std::to_string(f.capability) + " (" + toolkit + ", " + driver +
             "); build with CMAKE_ARGS=\"-DLOSSREG_CUDA_ARCHITECTURES=" + std::to_string(f.capability) + "-real\"";
    default:
      return "lossreg: a CUDA launch failed: " + f.words;
  }
}

}  // namespace lossreg::cuda
