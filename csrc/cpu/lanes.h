#pragma once
// The vector loops: how each is compiled for several processors, and what one lane of it takes from memory at once.
// That is one element, or two bfloat16 that lie side by side, as one word.
//
// GCC makes a loop of as many lanes as a vector has room for of the narrowest elements. Beside 16-bit elements each
// float would take two registers, and shuffles would make one of the other. A word of two bfloat16 is as wide as a
// float, and shifts take it apart.
#include "../base/dtype.h"

// One clone of the loop for each generation of x86; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(LOSSREG_NO_CLONES)
#define LOSSREG_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#else
#define LOSSREG_CLONES __attribute__((noinline))
#endif

namespace lossreg::cpu {

template <class S>
struct Lane {
  static constexpr int width = 1;
  using Word = S;
  template <class T>
  HD static T get(Word word, int) {
    return T(word);
  }
  template <class T>
  HD static Word of(const T (&x)[1]) {
    return Word(x[0]);
  }
};
template <>
struct Lane<BFloat16> {
  static constexpr int width = 2;
  using Word = uint32_t __attribute__((aligned(2), may_alias));
  template <class T>
  HD static T get(uint32_t word, int k) {
    return T(bits<float>(k == 0 ? word << 16 : word & 0xffff0000u));
  }
  template <class T>
  HD static uint32_t of(const T (&x)[2]) {
    return narrow_pair<BFloat16>(x[0], x[1]);
  }
};
template <class S>
using Word = typename Lane<S>::Word;

// The words of n elements; with an odd n of bfloat16 one element is left.
template <class S>
HD const Word<S>* words(const S* x) {
  return reinterpret_cast<const Word<S>*>(x);
}
template <class S>
HD Word<S>* words(S* x) {
  return reinterpret_cast<Word<S>*>(x);
}

}  // namespace lossreg::cpu
