#pragma once
// Numbers side by side in memory, which a thread reads and writes together.
#include "memory.h"

namespace lossreg::cuda {

// N numbers of a storage type, moved by instructions of up to 16 bytes: it lies on a boundary of so many.
template <class S, int N>
struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Neighbours {
  S at[N];
};
// How many fill 16 bytes; of void, where every number has its own dtype, one.
template <class S>
constexpr int neighbours_in_16_bytes() {
  if constexpr (std::is_void_v<S>) return 1;
  else return 16 / int(sizeof(S));
}
template <int N, class S>
__device__ Neighbours<S, N> load_neighbours(const S* first) {
  return *reinterpret_cast<const Neighbours<S, N>*>(first);
}
template <class S, int N>
__device__ void store_neighbours(S* first, const Neighbours<S, N>& numbers) {
  *reinterpret_cast<Neighbours<S, N>*>(first) = numbers;
}
template <class S, class T, int N>
__device__ void store_neighbours(S* first, const T (&x)[N]) {
  Neighbours<S, N> numbers;
  LOSSREG_UNROLL
  for (int j = 0; j < N; j++) numbers.at[j] = Narrow<S>::from(x[j]);
  store_neighbours(first, numbers);
}

}  // namespace lossreg::cuda
