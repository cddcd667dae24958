#pragma once
// The k smallest of a list of keys: see Backend::select_smallest.
#include <vector>

#include "../base/selection.h"
#include "../base/tensor.h"

namespace lossreg::cpu {

template <class Key>
Selection k_smallest(const Key* key, int64_t n, int64_t k) {
  std::vector<Key> sorted(key, key + n);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end());
  const Key cut = sorted[size_t(k - 1)];
  int64_t rest = k;
  for (int64_t i = 0; i < n; i++) rest -= key[i] < cut;
  int64_t last = -1;
  while (rest > 0) rest -= key[++last] == cut;
  return {cut, last};
}

}  // namespace lossreg::cpu
