#pragma once
// The CPU backend: chunks of a fixed size over torch's threads, combined in their order, so that results do not depend
// on the number of threads. What each member promises: skeletons/backend.h.
#include "cpu/chunks.h"
#include "cpu/products.h"
#include "cpu/select.h"
#include "cpu/stream.h"
#include "cpu/team.h"
#include "skeletons/boxwise/cpu.h"
#include "skeletons/groupwise/cpu.h"
#include "skeletons/pointwise/cpu.h"
#include "skeletons/regionwise/cpu.h"
#include "skeletons/rowwise/cpu.h"

namespace lossreg {

struct Cpu {
  static constexpr bool checks_values = true;
  static constexpr bool one_pass = true;
  static constexpr int kStrip = 128;

  using Pointwise = cpu::PointwiseKernels;
  using Rows = cpu::RowKernels;
  using Groups = cpu::GroupKernels;
  using Boxes = cpu::BoxKernels;
  using Regions = cpu::RegionKernels;
  using Products = cpu::Products;

  struct Guard {
    explicit Guard(const Tensor&) {}
    bool records() const { return false; }
  };
  static bool zero(const Tensor& t) {
    char* data = static_cast<char*>(t.mutable_data_ptr());
    int64_t bytes = t.numel() * int64_t(t.element_size());
    torch::stable::parallel_for(0, bytes, 1 << 20, [&](int64_t first, int64_t last) {
      if (bytes >= cpu::kStreamed) cpu::stream_bytes(data + first, nullptr, last - first);
      else std::memset(data + first, 0, size_t(last - first));
    });
    return true;
  }

  static void add_product(const Tensor& out, const Tensor& addend, double beta, const Tensor& a, const Tensor& b) {
    cpu::add_product(out, addend, beta, a, b);
  }
  static void wide_product(const Tensor& out, const Tensor& a, const Tensor& b) { cpu::wide_product(out, a, b); }

  template <class Key>
  static void select_smallest(const Tensor&, const Key* key, int64_t n, int, int64_t k, const double* there,
                              Selection* out) {
    *out = *there >= double(k) ? Selection::nothing() : cpu::k_smallest(key, n, k);
  }

  template <class Body>
  static void each(int64_t n, int64_t cost, Body body) {
    cpu::each_chunk<Sweep::backward>(n, cpu::chunk_of(cost),
                                     [&](int64_t, int64_t begin, int64_t end) { cpu::each_loop(body, begin, end); });
  }
  template <class Body>
  static void teams(int64_t n, int64_t cost, Body body) {
    cpu::each_chunk<Sweep::backward>(n, cpu::chunk_of(cost),
                                     [&](int64_t, int64_t begin, int64_t end) { cpu::team_loop(body, begin, end); });
  }
  template <int K, class Body, class Finish>
  static void total(const Tensor&, int64_t n, int64_t cost, Body body, Finish finish) {
    double sums[K];
    cpu::sum_chunks(n, cpu::chunk_of(cost), sums,
                    [&](int64_t begin, int64_t end, double (&own)[K]) { cpu::total_loop(body, begin, end, own); });
    finish(sums);
  }
};

}  // namespace lossreg
