#pragma once
// How work is shared out: chunks of a fixed size over torch's threads. What the chunks find is combined in their order,
// so that results do not depend on the number of threads.
#include "../base/tensor.h"

namespace lossreg::cpu {

constexpr int64_t kChunk = 1 << 15;  // elements that make a chunk worth a thread's while

inline int64_t chunks(int64_t n, int64_t chunk) {
  return (n + chunk - 1) / chunk;
}
// How many pieces of work make a chunk, where one touches about `cost` elements.
inline int64_t chunk_of(int64_t cost) {
  return std::max<int64_t>(1, kChunk / std::max<int64_t>(1, cost));
}

// each(worker, c, begin, end) for every chunk c, which is [begin, end) of n, on torch's threads; make_worker() is
// called once a thread, for what that needs of its own. A chunk touches about `cost` elements. A forward sweep goes
// from the first chunk on and leaves the last ones in cache; so a backward pass, which often reads the same inputs
// right after, goes the other way.
template <Sweep sweep, class MakeWorker, class Each>
void each_chunk(int64_t n, int64_t chunk, int64_t cost, MakeWorker make_worker, Each each) {
  torch::stable::parallel_for(0, chunks(n, chunk), chunk_of(cost), [&](int64_t first, int64_t last) {
    auto worker = make_worker();
    for (int64_t k = 0; k < last - first; k++) {
      int64_t c = sweep == Sweep::forward ? first + k : last - 1 - k;
      each(worker, c, c * chunk, std::min(n, (c + 1) * chunk));
    }
  });
}
// each(c, begin, end), of chunks that are worth a thread each.
template <Sweep sweep, class Each>
void each_chunk(int64_t n, int64_t chunk, Each each) {
  each_chunk<sweep>(
      n, chunk, kChunk, [] { return 0; }, [&](int, int64_t c, int64_t begin, int64_t end) { each(c, begin, end); });
}

}  // namespace lossreg::cpu
