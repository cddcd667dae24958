// What a launch that failed says, for each cause that is known.
#include "cuda/errors.h"

#include <cstdio>
#include <vector>

using namespace lossreg::cuda;

int main() {
  LaunchFailure failure{kDriverTooOld, "words", 13000, 12040, 75, "80-real;90-real"};
  auto says = [&](int error, std::vector<std::string> parts) {
    failure.error = error;
    std::string text = text_of(failure);
    for (const std::string& part : parts)
      if (text.find(part) == std::string::npos) {
        std::printf("expected %s in: %s\n", part.c_str(), text.c_str());
        return false;
      }
    return true;
  };
  bool all =
      says(kDriverTooOld, {"expected", "CUDA 13.0 or later", "built by CUDA 13.0", "got a driver of CUDA 12.4"}) &&
      says(kNoCodeForDevice,
           {"80-real;90-real", "got one of sm_75", "CUDA 13.0", "CUDA 12.4", "ARCHITECTURES=75-real"}) &&
      says(kPtxTooNew, {"PTX of CUDA 13.0", "sm_75", "got a driver of CUDA 12.4"}) &&
      says(700, {"a CUDA launch failed: words"});
  failure.driver = 0;
  all = all && says(kDriverTooOld, {"got no driver"});
  if (!all) return 1;
  std::puts("5 messages compared");
}
