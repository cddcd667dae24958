#pragma once
// Stores past the caches, for results that nobody will find there.
#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__) && !defined(_WIN32)
#include <immintrin.h>
#endif

namespace lossreg::cpu {

// A result of so many bytes drives everything else out of the caches, and itself too before anybody reads it. A store
// past the caches then saves that a line is read before it is overwritten.
constexpr int64_t kStreamed = int64_t(32) << 20;
constexpr int64_t kLine = 64;  // bytes
#if defined(__x86_64__) && !defined(_WIN32)
// Copies lines that begin `step` bytes after each other. One store a line: four stores of a quarter take half as long
// again.
__attribute__((target("avx512f"))) inline void stream_lines_avx512(char* to, const char* from, int64_t step,
                                                                   int64_t lines) {
  for (int64_t i = 0; i < lines; i++)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i * kLine), _mm512_loadu_si512(from + i * step));
}
inline void stream_lines_sse2(char* to, const char* from, int64_t step, int64_t lines) {
  for (int64_t i = 0; i < lines; i++)
    for (int64_t part = 0; part < kLine; part += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i * kLine + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * step + part)));
}
inline void stream_lines(char* to, const char* from, int64_t step, int64_t lines) {
  static const bool wide = __builtin_cpu_supports("avx512f");
  if (wide) stream_lines_avx512(to, from, step, lines);
  else stream_lines_sse2(to, from, step, lines);
}
#else  // on Windows, __builtin_cpu_supports is in a library that clang-cl does not link
inline void stream_lines(char* to, const char* from, int64_t step, int64_t lines) {
  for (int64_t i = 0; i < lines; i++) std::memcpy(to + i * kLine, from + i * step, kLine);
}
#endif
// Copies n bytes, or writes zeros where `from` is null. Whole lines go past the caches; what is less than a line at
// either end is stored as usual.
inline void stream_bytes(char* to, const char* from, int64_t n) {
  alignas(kLine) static const char zeros[kLine] = {};
  auto plainly = [&](int64_t at, int64_t count) {
    if (from) std::memcpy(to + at, from + at, size_t(count));
    else std::memset(to + at, 0, size_t(count));
  };
  int64_t head = std::min(n, int64_t(-reinterpret_cast<uintptr_t>(to) % kLine)), lines = (n - head) / kLine;
  plainly(0, head);
  stream_lines(to + head, from ? from + head : zeros, from ? kLine : 0, lines);
  plainly(head + lines * kLine, n - head - lines * kLine);
}

}  // namespace lossreg::cpu
