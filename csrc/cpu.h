#pragma once
// The CPU backend: chunks of a fixed size over torch's threads, combined in their order, so that results do not depend
// on the number of threads.
#include "cpu/chunks.h"
#include "cpu/tiles.h"
#include "skeletons/boxwise/cpu.h"
#include "skeletons/groupwise/cpu.h"
#include "skeletons/pointwise/cpu.h"
#include "skeletons/regionwise/cpu.h"
#include "skeletons/rowwise/cpu.h"

namespace lossreg {

struct Cpu {
  static constexpr bool checks_values = true;
  // Elements side by side that one thread takes at once: the loops over them become vectors.
  static constexpr int kLanes = 128;

  using Pointwise = cpu::PointwiseKernels;
  using Rows = cpu::RowKernels;
  using Groups = cpu::GroupKernels;
  using Boxes = cpu::BoxKernels;
  using Regions = cpu::RegionKernels;

  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  // Zeros into a tensor without gaps. True: it did.
  static bool zero(const Tensor& t) {
    char* data = static_cast<char*>(t.mutable_data_ptr());
    int64_t bytes = t.numel() * int64_t(t.element_size());
    torch::stable::parallel_for(0, bytes, 1 << 20, [&](int64_t first, int64_t last) {
      if (bytes >= cpu::kStreamed) cpu::stream_bytes(data + first, nullptr, last - first);
      else std::memset(data + first, 0, size_t(last - first));
    });
    return true;
  }

  // Three ways to run a body of one's own, a struct with an HD operator(). `cost` is about how many elements one i
  // touches: chunks of work are made of it. What body holds must be plain: pointers, numbers, Operands.

  // body(i) for every i < n, in any order.
  template <class Body>
  static void each(int64_t n, int64_t cost, Body body) {
    cpu::each_chunk<Sweep::backward>(n, cpu::chunk_of(cost),
                                     [&](int64_t, int64_t begin, int64_t end) { cpu::each_loop(body, begin, end); });
  }
  // body(i, team) for every i < n, in any order: by one thread here, by a block of threads on a GPU. The team's threads
  // share the work: for (k = team.rank(); k < m; k += team.size()); or team.each(m, f) and team.sum(m, f), which call
  // f(k) for every k < m in a vector loop here.
  template <class Body>
  static void teams(int64_t n, int64_t cost, Body body) {
    cpu::each_chunk<Sweep::backward>(n, cpu::chunk_of(cost),
                                     [&](int64_t, int64_t begin, int64_t end) { cpu::team_loop(body, begin, end); });
  }
  // finish(sums), once, with the K sums over i < n of what body(i, sums) adds to sums. Neither is read on the host.
  template <int K, class Body, class Finish>
  static void total(const Tensor&, int64_t n, int64_t cost, Body body, Finish finish) {
    int64_t chunk = cpu::chunk_of(cost);
    std::vector<std::array<double, K>> partial(size_t(cpu::chunks(n, chunk)), std::array<double, K>{});
    cpu::each_chunk<Sweep::forward>(n, chunk, [&](int64_t c, int64_t begin, int64_t end) {
      double sums[K] = {};
      cpu::total_loop<K>(body, begin, end, sums);
      std::copy(sums, sums + K, partial[size_t(c)].begin());
    });
    double sums[K] = {};
    for (const auto& p : partial)
      for (int k = 0; k < K; k++) sums[k] += p[size_t(k)];
    finish(sums);
  }
};

}  // namespace lossreg
