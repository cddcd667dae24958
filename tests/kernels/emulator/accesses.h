#pragma once
#include "cuda_emulator.h"

namespace emulator {

// Memory whose accesses count.
void watch(const void* data, size_t bytes);
void forget_watched();

}  // namespace emulator
