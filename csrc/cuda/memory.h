#pragma once
// Reading and writing memory: one element of any dtype, or packs of elements of a dtype that a kernel is compiled for.
#include "../base/lean.h"
#include "launch.h"

namespace lossreg::cuda {

// One element of an operand of any dtype. These are calls, not inlined: each is a switch over ten dtypes, and the fast
// paths do without. The operand itself is no argument of the call, since a kernel that takes its address copies all of
// its parameters into local memory.
template <class T>
__device__ LOSSREG_NOINLINE T read_at(void* data, DType dtype, int64_t offset) {
  Operand o;
  o.data = data;
  o.dtype = dtype;
  return get<T>(o, offset);
}
template <class T>
__device__ LOSSREG_NOINLINE void write_at(void* data, DType dtype, int64_t offset, T value) {
  Operand o;
  o.data = data;
  o.dtype = dtype;
  put(o, offset, value);
}
template <class T>
__device__ T read(const Operand& o, int64_t offset) {
  return read_at<T>(o.data, o.dtype, offset);
}
template <class T>
__device__ void write(const Operand& o, int64_t offset, T value) {
  write_at(o.data, o.dtype, offset, value);
}

// The type to compute in where memory holds S, or any dtypes (void).
template <class T, class S>
using Computed = std::conditional_t<std::is_same_v<S, BFloat16> || std::is_same_v<S, Float16>, Lean, T>;

// The elements that a thread reads with one instruction, 16 bytes of them or fewer: words, which registers are.
template <class S, int Bytes = 16>
struct alignas(Bytes) Pack {
  static_assert(sizeof(S) == 2 || sizeof(S) == 4);
  static constexpr int size = Bytes / int(sizeof(S)), words = Bytes / 4;
  uint32_t word[words];

  template <class T>
  HD static Pack of(const T (&x)[size]) {
    Pack pack;
    for (int w = 0; w < words; w++) {
      if constexpr (sizeof(S) == 4) pack.word[w] = bits<uint32_t>(S(x[w]));
      else pack.word[w] = narrow_pair<S>(x[2 * w], x[2 * w + 1]);
    }
    return pack;
  }
  HD static Pack all(S x) {
    Pack pack;
    for (int w = 0; w < words; w++) {
      if constexpr (sizeof(S) == 4) pack.word[w] = bits<uint32_t>(x);
      else pack.word[w] = x.bits * 0x10001u;
    }
    return pack;
  }
  template <class T>
  HD T at(int j) const {
    if constexpr (sizeof(S) == 4) return T(bits<S>(word[j]));
    else return widen<T>(S{uint16_t(word[j / 2] >> (j % 2 * 16))});
  }
};

// A kernel is compiled for each storage type S of its operands that float is computed from, and for void: any dtypes,
// and whatever is computed in double, which is there to verify. These choose one for a call, as use(S*).

// The first S for which holds(S*) is true, else void.
template <class T, class Holds, class Use>
void with_storage_where(Holds holds, Use use) {
  auto attempt = [&](auto* storage) { return holds(storage) ? (use(storage), true) : false; };
  if constexpr (sizeof(T) == 4) {
    if (attempt(static_cast<float*>(nullptr))) return;
    if (attempt(static_cast<BFloat16*>(nullptr))) return;
    if (attempt(static_cast<Float16*>(nullptr))) return;
  }
  use(static_cast<void*>(nullptr));
}
// That of a floating dtype. Of T = float there is no other than these three, so nothing is compiled for void.
template <class T, class Use>
void with_storage_of(DType dtype, Use use) {
  if constexpr (sizeof(T) == 8) {
    if (dtype == DType::float64) return use(static_cast<double*>(nullptr));
    use(static_cast<void*>(nullptr));
  } else {
    if (dtype == DType::float32) return use(static_cast<float*>(nullptr));
    if (dtype == DType::bfloat16) return use(static_cast<BFloat16*>(nullptr));
    use(static_cast<Float16*>(nullptr));
  }
}

}  // namespace lossreg::cuda
