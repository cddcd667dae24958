#pragma once
// Which of the blocks of a launch is the last to finish: what the others have written, it can combine, without another
// launch.
#include <atomic>
#include <cstdint>
#include <random>

namespace lossreg::cuda {

// Tells which of a known number of blocks is the last one that has come so far, by a word of memory that holds a tag
// and how many have come. The memory needs no preparation: whatever it holds, a word without this call's tag counts as
// 0. That is what spares a launch that would clear it, and holds for a graph that is replayed: the tag is the same each
// time, so that the last block leaves a word of 0. Tags of one process are all different, and begin at random: that
// memory holds one by chance has a probability of 2^-44.
struct Arrivals {
  static constexpr int kCountBits = 20;
  unsigned long long* word;
  unsigned long long tag;  // in its place above the count

  static unsigned long long new_tag() {
    static std::atomic<uint64_t> next{std::random_device{}()};
    return (next++ * 0x9e3779b97f4a7c15u) << kCountBits;
  }
  // For one thread of each block, after what the block wrote for the last one, which may read it from then on.
  __device__ bool is_last(unsigned blocks) const {
    __threadfence();
    unsigned long long seen = __ldcg(word);
    if (seen >> kCountBits != tag >> kCountBits) atomicCAS(word, seen, tag);  // fails where another block was first
    bool last = atomicAdd(word, 1ull) - tag == blocks - 1;
    if (last) *word = 0;
    __threadfence();
    return last;
  }
};

}  // namespace lossreg::cuda
