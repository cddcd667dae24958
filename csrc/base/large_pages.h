#pragma once
// Large pages for large results. A system hands out fresh memory page by page, as each is first written to, and zeroes
// it: for a result of 100 MiB, whose memory is new at every call, that takes longer than to compute it. Of large pages
// there are 512 times fewer. Linux gives them where it is asked to, as numpy asks too.
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lossreg {

inline void ask_for_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  // smaller blocks mostly lie in memory that was written to before
  constexpr int64_t worth = int64_t(4) << 20;
  // a multiple of any processor's page
  constexpr uintptr_t page = 1 << 16;
  if (bytes < worth) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // where that fails, nothing is lost
#endif
}

}  // namespace lossreg
