#pragma once
// How work is shared out: chunks of a fixed size over torch's threads. What the chunks find is combined in their order,
// so that results do not depend on the number of threads.
#include "../base/tensor.h"

namespace lossreg::cpu {

// Elements that keep a thread busy for long enough to be worth handing over.
constexpr int64_t kChunk = 1 << 15;

// How many chunks n pieces of work make.
inline int64_t chunks(int64_t n, int64_t chunk) {
  return (n + chunk - 1) / chunk;
}
// How many pieces a chunk should have, if each touches about `cost` elements.
inline int64_t chunk_of(int64_t cost) {
  return std::max<int64_t>(1, kChunk / std::max<int64_t>(1, cost));
}

// Calls each(worker, c, begin, end) for every chunk c, the pieces [begin, end), on torch's threads. Each thread has a
// worker of its own, from make_worker(). A chunk touches about `cost` elements. A forward sweep begins with the first
// chunk and leaves the last ones in cache; a backward sweep, which often reads the same inputs right after, begins with
// the last.
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
// Calls each(c, begin, end), for chunks that are worth a thread each.
template <Sweep sweep, class Each>
void each_chunk(int64_t n, int64_t chunk, Each each) {
  each_chunk<sweep>(
      n, chunk, kChunk, [] { return 0; }, [&](int, int64_t c, int64_t begin, int64_t end) { each(c, begin, end); });
}
// The sums over all chunks, in their order, of what of_chunk(begin, end, sums) adds to K sums for one.
template <int K, class OfChunk>
void sum_chunks(int64_t n, int64_t chunk, double (&sums)[K], OfChunk of_chunk) {
  std::vector<std::array<double, K>> partial(size_t(chunks(n, chunk)));
  each_chunk<Sweep::forward>(n, chunk, [&](int64_t c, int64_t begin, int64_t end) {
    double own[K] = {};
    of_chunk(begin, end, own);
    std::copy(own, own + K, partial[size_t(c)].begin());
  });
  std::fill(sums, sums + K, 0.0);
  for (const auto& p : partial)
    for (int k = 0; k < K; k++) sums[k] += p[size_t(k)];
}

}  // namespace lossreg::cpu
