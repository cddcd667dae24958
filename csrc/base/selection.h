#pragma once
// The k smallest of a list of keys, which are unsigned integers: those below a cut, and at the cut those that come
// first.
#include <cstdint>

#include "compiler.h"

namespace lossreg {

struct Selection {
  uint64_t cut;
  int64_t last;  // the place of the last key at the cut that belongs to the k; -1: none does

  HD static Selection nothing() { return {0, -1}; }
  HD bool has(uint64_t key, int64_t place) const { return key < cut || (key == cut && place <= last); }
};

}  // namespace lossreg
