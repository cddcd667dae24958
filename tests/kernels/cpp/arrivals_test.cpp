// Blocks that count themselves, here threads of the processor: one of them is the last, and it sees what all have
// written; in memory that holds anything, in a call that is repeated as a replayed graph repeats it.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

// The processor's own atomic operations under CUDA's names.
#define __device__
static void __threadfence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
using Word = unsigned long long;
static Word __ldcg(const Word* word) {
  return __atomic_load_n(word, __ATOMIC_RELAXED);
}
static Word atomicCAS(Word* word, Word expected, Word value) {
  __atomic_compare_exchange_n(word, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
static Word atomicAdd(Word* word, Word value) {
  return __atomic_fetch_add(word, value, __ATOMIC_RELAXED);
}
#include "cuda/arrivals.h"

using lossreg::cuda::Arrivals;

int main() {
  constexpr unsigned kThreads = 4, kBlocks = 23;
  std::mt19937_64 random_bits{3};
  long compared = 0;
  for (int call = 0; call < 300; call++) {
    Word tag = Arrivals::new_tag(), word = 0;
    // what a caching allocator may hand out: anything, the word of an earlier call, zeros
    if (call % 3 == 0) word = random_bits();
    if (call % 3 == 1) word = Arrivals::new_tag() + 7;
    for (int replay = 0; replay < 3; replay++) {
      std::vector<int> left(kBlocks, -1);
      std::atomic<unsigned> next{0}, last_ones{0}, complete{0};
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < kThreads; t++)
        threads.emplace_back([&] {
          for (unsigned block; (block = next++) < kBlocks;) {
            __atomic_store_n(&left[block], int(block), __ATOMIC_RELAXED);
            if (!Arrivals{&word, tag}.is_last(kBlocks)) continue;
            last_ones++;
            bool all = true;
            for (unsigned b = 0; b < kBlocks; b++) all = all && __atomic_load_n(&left[b], __ATOMIC_RELAXED) == int(b);
            complete += all;
          }
        });
      for (std::thread& thread : threads) thread.join();
      compared++;
      if (last_ones != 1 || complete != 1 || word != 0) {
        std::printf("call %d, replay %d: %u last blocks, %u of them saw all, word %llx\n", call, replay,
                    last_ones.load(), complete.load(), word);
        return 1;
      }
    }
  }
  std::printf("%ld calls compared\n", compared);
}
