// What the kernels' threads ask of memory. The kernels are compiled with -fsanitize=thread, which calls a function of
// the sanitizer's library at every load and store that is not a thread's own; these functions stand in for that
// library.
#include <algorithm>
#include <array>
#include <map>
#include <tuple>
#include <unordered_map>

#include "accesses.h"

namespace emulator {
namespace {

std::map<uintptr_t, uintptr_t> watched;  // begin and end of the tensors' memory

bool is_watched(uintptr_t at) {
  // most accesses are to a thread's own variables
  if (at - reinterpret_cast<uintptr_t>(fibers[current].stack.get()) < kStack) return false;
  auto after = watched.upper_bound(at);
  return after != watched.begin() && at < std::prev(after)->second;
}

// What a thread asked for, and as the how-manyeth time at this place of the code: the threads of a warp that do so as
// often do it together.
struct Access {
  uint32_t warp, time;
  uintptr_t site, sector;
  bool store;
  auto request() const { return std::tie(store, warp, site, time); }
  bool operator<(const Access& o) const {
    return std::tie(store, warp, site, time, sector) < std::tie(o.store, o.warp, o.site, o.time, o.sector);
  }
  bool operator==(const Access& o) const { return request() == o.request() && sector == o.sector; }
};
std::vector<Access> accesses;  // of the block that runs
int64_t bytes_of[2];           // loaded, stored

// The latest of a thread's accesses to 16 bytes. The host's compiler takes a pack apart, a GPU's does not: elements of
// one pack that different places of the code name one after the other are one access.
struct Granule {
  uintptr_t at, site;
  uint32_t taken;  // a bit a byte
  bool store;
};
struct Thread {
  std::unordered_map<uintptr_t, uint32_t> times;
  std::array<Granule, 16> latest{};
  size_t next = 0;
};
std::vector<Thread> threads;

void access(const void* p, size_t size, bool store, const void* place) {
  if (!counting || !inside) return;
  auto begin = reinterpret_cast<uintptr_t>(p), site = reinterpret_cast<uintptr_t>(place);
  if (!is_watched(begin)) return;
  bytes_of[store] += int64_t(size);
  if (threads.size() <= current) threads.resize(current + 1);
  Thread& t = threads[current];
  if (size < 16) {
    uint32_t taken = ((1u << size) - 1) << begin % 16;
    for (Granule& g : t.latest) {
      if (g.at != begin / 16 || g.store != store || g.site == site || (g.taken & taken)) continue;
      g.taken |= taken;
      return;
    }
    t.latest[t.next++ % t.latest.size()] = {begin / 16, site, taken, store};
  }
  uint32_t time = t.times[site]++;
  for (uintptr_t sector = begin / 32; sector <= (begin + size - 1) / 32; sector++)
    accesses.push_back({current / 32, time, site, sector, store});
}

}  // namespace

void count_block(Launch& launch) {
  std::sort(accesses.begin(), accesses.end());
  accesses.erase(std::unique(accesses.begin(), accesses.end()), accesses.end());
  std::vector<uintptr_t> sectors[2];
  for (size_t i = 0; i < accesses.size(); i++) {
    const Access& a = accesses[i];
    Traffic& of = a.store ? launch.stores : launch.loads;
    of.sectors++;
    of.requests += i == 0 || accesses[i - 1].request() != a.request();
    sectors[a.store].push_back(a.sector);
  }
  for (bool store : {false, true}) {
    auto& s = sectors[store];
    std::sort(s.begin(), s.end());
    Traffic& of = store ? launch.stores : launch.loads;
    of.distinct += std::unique(s.begin(), s.end()) - s.begin();
    of.bytes += bytes_of[store];
    bytes_of[store] = 0;
  }
  accesses.clear();
  threads.clear();
}

void watch(const void* data, size_t bytes) {
  auto begin = reinterpret_cast<uintptr_t>(data);
  if (bytes) watched[begin] = std::max(watched[begin], begin + bytes);
}
void forget_watched() {
  watched.clear();
}

}  // namespace emulator

#define HOOK extern "C" __attribute__((visibility("default")))
#define ACCESS(name, size, store)                                  \
  HOOK void __tsan_##name##size(void* p) {                         \
    emulator::access(p, size, store, __builtin_return_address(0)); \
  }                                                                \
  HOOK void __tsan_unaligned_##name##size(void* p) {               \
    emulator::access(p, size, store, __builtin_return_address(0)); \
  }
#define SIZE(size) ACCESS(read, size, false) ACCESS(write, size, true)
SIZE(1)
SIZE(2)
SIZE(4)
SIZE(8)
SIZE(16)

HOOK void __tsan_read_range(void* p, size_t size) {
  emulator::access(p, size, false, __builtin_return_address(0));
}
HOOK void __tsan_write_range(void* p, size_t size) {
  emulator::access(p, size, true, __builtin_return_address(0));
}
HOOK void __tsan_init() {}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_vptr_read(void**) {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}

// What the host's part of an op does with atomics.
#define ATOMIC(bits)                                                                                       \
  HOOK uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* p, int) {                  \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                           \
  }                                                                                                        \
  HOOK void __tsan_atomic##bits##_store(volatile uint##bits##_t* p, uint##bits##_t v, int) {               \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                              \
  }                                                                                                        \
  HOOK uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t* p, uint##bits##_t v, int) {  \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                    \
  }                                                                                                        \
  HOOK uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t* p, uint##bits##_t v, int) { \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                     \
  }                                                                                                        \
  HOOK uint##bits##_t __tsan_atomic##bits##_fetch_sub(volatile uint##bits##_t* p, uint##bits##_t v, int) { \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                                     \
  }
ATOMIC(8) ATOMIC(16) ATOMIC(32) ATOMIC(64)
