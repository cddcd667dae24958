#pragma once
// The vector loops: how each is compiled for several processors, and what one lane of it takes from memory at once.
// That is one element, or two bfloat16 that lie side by side, as one word.
//
// GCC makes a loop of as many lanes as a vector has room for of the narrowest elements. Beside 16-bit elements each
// float would take two registers, and shuffles would make one of the other. A word of two bfloat16 is as wide as a
// float, and shifts take it apart.
#include "../base/dtype.h"
#if defined(__x86_64__) && !defined(_WIN32)
#include <immintrin.h>
#endif

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

// Two arrays of floats, rounded to the halves of words: what a loop of words has computed, which writes that into two
// arrays in L1 rather than round each float where it is: a processor with AVX512_BF16 rounds 32 of them at once.
constexpr int64_t kWords = 512;  // that a loop computes before it rounds them

LOSSREG_CLONES inline void round_words_by_bits(const float* low, const float* high, Lane<BFloat16>::Word* to,
                                               int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) to[i] = narrow_pair<BFloat16>(low[i], high[i]);
}
#if defined(__x86_64__) && !defined(_WIN32)
__attribute__((target("avx512f,avx512bw,avx512dq,avx512bf16"),
               noinline)) inline void round_words_avx512(const float* low, const float* high, Lane<BFloat16>::Word* to,
                                                         int64_t n) {
  // The instruction leaves 16 rounded numbers behind 16 others, and this is the order in which they alternate.
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i alternate = _mm512_load_si512(order);
  constexpr int kDenormal = 0x20;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 a = _mm512_loadu_ps(low + i), b = _mm512_loadu_ps(high + i);
    // it takes denormals for 0, which bfloat16 has as float does
    if (_mm512_fpclass_ps_mask(a, kDenormal) | _mm512_fpclass_ps_mask(b, kDenormal)) {
      round_words_by_bits(low + i, high + i, to + i, 16);
      continue;
    }
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    _mm512_storeu_si512(to + i, _mm512_permutexvar_epi16(alternate, both));
  }
  if (i < n) round_words_by_bits(low + i, high + i, to + i, n - i);
}
inline void round_words(const float* low, const float* high, Lane<BFloat16>::Word* to, int64_t n) {
  static const bool wide =
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (wide) round_words_avx512(low, high, to, n);
  else round_words_by_bits(low, high, to, n);
}
#else
inline void round_words(const float* low, const float* high, Lane<BFloat16>::Word* to, int64_t n) {
  round_words_by_bits(low, high, to, n);
}
#endif

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
