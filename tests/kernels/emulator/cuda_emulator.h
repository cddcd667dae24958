#pragma once
// Runs CUDA kernels on the host: a fiber for each thread of a block, one block after the other. Fibers change places at
// barriers and shuffles only. Blocks, and the threads between two barriers, run in an order drawn from a seed, so that
// a kernel that leans on an order, or lacks a barrier, gives another result for another seed. What was launched, and
// what the threads asked of memory, is written down: accesses.cpp.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#define LOSSREG_EMULATE
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulator {

struct Dim {
  unsigned x;
};
inline Dim block_index, block_size, grid_size;

constexpr size_t kStack = 128 << 10;
struct Fiber {
  ucontext_t start;
  jmp_buf place;
  bool started = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  int64_t reached[2] = {0, 0};  // barriers of its warp, of the block
  bool done = false;
  unsigned char slot[32];                             // what it shows to its warp in a shuffle
  std::vector<std::pair<void*, const void*>> copies;  // that it began and has not waited for
};
#define LOSSREG_NOT_COUNTED __attribute__((no_sanitize("thread")))  // no kernel's access to memory
inline std::vector<Fiber> fibers;
inline unsigned current = 0;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::mt19937_64 random{1};
inline bool failed = false;
inline int64_t most_blocks = INT64_MAX;  // of a launch that run; 0: launches are counted, and nothing is computed
inline bool counting = false;            // whether the threads' accesses to memory are
inline bool inside = false;              // whether it is a kernel's thread that runs, not what runs the threads

// Of a warp's loads, or of its stores. A sector is 32 bytes, what a GPU's memory is asked for; a request is what one
// instruction of a warp asks for.
struct Traffic {
  int64_t requests = 0, sectors = 0;
  int64_t distinct = 0;  // sectors, each counted once a block: what a cache would leave
  int64_t bytes = 0;     // that the threads named
};
struct Launch {
  const void* kernel;
  unsigned blocks, threads, ran;
  Traffic loads, stores;
};
inline std::vector<Launch> launches;
void count_block(Launch& launch);  // adds up what the threads of a block asked for

// From one stack to the other by jumps: swapcontext would ask the system for the mask of signals each time.
__attribute__((noinline)) inline void yield() {
  if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}
__attribute__((noinline)) inline void resume(Fiber& f) {
  if (_setjmp(scheduler) != 0) return;
  if (f.started) _longjmp(f.place, 1);
  f.started = true;
  setcontext(&f.start);
}
inline void run_body() {
  body();
  fibers[current].done = true;
  yield();
}

// Waits until every fiber of [first, last) has come as far. Where one has returned without, a GPU would hang.
enum Scope { kWarp, kBlock };
LOSSREG_NOT_COUNTED inline void barrier(Scope scope, unsigned first, unsigned last) {
  int64_t mine = ++fibers[current].reached[scope];
  for (;;) {
    bool all = true;
    for (unsigned i = first; i < last; i++) {
      bool there = fibers[i].reached[scope] >= mine;
      if (fibers[i].done && !there) {
        // an exception can't leave a fiber: launch() throws it
        failed = true;
        fibers[current].done = true;
        yield();
      }
      all = all && there;
    }
    if (all) return;
    yield();
  }
}

inline std::vector<unsigned> shuffled(unsigned n) {
  std::vector<unsigned> order(n);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

inline void run_block() {
  unsigned n = block_size.x;
  if (fibers.size() < n) fibers.resize(n);
  for (unsigned i = 0; i < n; i++) {
    Fiber& f = fibers[i];
    f.done = f.started = false;
    f.reached[kWarp] = f.reached[kBlock] = 0;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = kStack;
    f.start.uc_link = nullptr;
    makecontext(&f.start, run_body, 0);
  }
  for (bool live = true; live;) {
    live = false;
    for (unsigned i : shuffled(n)) {
      if (fibers[i].done) continue;
      live = true;
      current = i;
      inside = true;
      resume(fibers[i]);
      inside = false;
    }
  }
}

// Where not all blocks run: those in the middle of `most_blocks` equal parts.
inline bool chosen(unsigned b, unsigned blocks) {
  for (int64_t k = 0; k < most_blocks; k++)
    if (b == (2 * k + 1) * blocks / (2 * most_blocks)) return true;
  return false;
}

// Stands for the device and the stream that are current while it lives. Without one, a launch would go to another
// device than the tensors', where those are not on the first.
inline int guards = 0;
inline bool recording = false;
struct Guard {
  template <class Tensor>
  explicit Guard(const Tensor&) {
    guards++;
  }
  Guard(const Guard&) = delete;
  ~Guard() { guards--; }
  bool records() const { return recording; }
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, const Arguments&... arguments) {
  if (guards == 0) throw std::logic_error("emulator: a launch without a Guard of the tensors' device");
  launches.push_back({reinterpret_cast<const void*>(kernel), blocks, threads, 0, {}, {}});
  grid_size = {blocks};
  block_size = {threads};
  auto call = [&] { kernel(Parameters(arguments)...); };
  body = std::ref(call);
  for (unsigned b : shuffled(blocks)) {
    if (most_blocks < blocks && !chosen(b, blocks)) continue;
    block_index = {b};
    failed = false;
    run_block();
    if (failed) throw std::logic_error("emulator: a thread waits at a barrier that another will never reach");
    launches.back().ran++;
    if (counting) count_block(launches.back());
  }
}

template <class T>
LOSSREG_NOT_COUNTED T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) <= sizeof(Fiber::slot));
  unsigned first = current / 32 * 32, last = std::min(first + 32, block_size.x), me = current;
  std::memcpy(fibers[me].slot, &value, sizeof value);
  barrier(kWarp, first, last);
  T other;
  std::memcpy(&other, fibers[me ^ unsigned(mask)].slot, sizeof other);
  barrier(kWarp, first, last);
  return other;
}

// The bytes arrive when the thread waits for them, and no sooner.
inline void copy_16_bytes(void* shared, const void* memory) {
  if (uintptr_t(shared) % 16 || uintptr_t(memory) % 16) failed = true;
  fibers[current].copies.emplace_back(shared, memory);
}
inline void wait_for_copies() {
  for (auto [shared, memory] : fibers[current].copies) std::memcpy(shared, memory, 16);
  fibers[current].copies.clear();
}

// Blocks run one after the other: what is atomic on a GPU needs nothing here.
inline unsigned long long atomicAdd(unsigned long long* word, unsigned long long value) {
  return std::exchange(*word, *word + value);
}
inline unsigned atomicAdd(unsigned* word, unsigned value) {
  return std::exchange(*word, *word + value);
}
inline unsigned long long atomicCAS(unsigned long long* word, unsigned long long expected, unsigned long long value) {
  return std::exchange(*word, *word == expected ? value : *word);
}
inline void __threadfence() {}
template <class T>
T __ldcg(const T* place) {
  return *place;
}

}  // namespace emulator

#define threadIdx (emulator::Dim{emulator::current})
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size
#define __syncthreads() emulator::barrier(emulator::kBlock, 0, emulator::block_size.x)
#define __shfl_xor_sync(mask, value, lane) emulator::shuffle_xor(value, lane)

namespace lossreg {
namespace emulator = ::emulator;
using emulator::__ldcg, emulator::__threadfence, emulator::atomicAdd, emulator::atomicCAS;
}  // namespace lossreg
