#pragma once
// The loops over bodies that are written out once for all backends: see Backend::each, teams and total.
#include "lanes.h"

namespace lossreg::cpu {

// A team of one thread, whose loops are vectors. cuda/team.h has the team that is a block of threads.
struct Team {
  HD int64_t rank() const { return 0; }
  HD int64_t size() const { return 1; }
  HD void sync() const {}
  template <class T>
  HD T sum(T value) const {
    return value;
  }
  template <class T>
  HD T max(T value) const {
    return value;
  }
  // The sum over the threads of a lower rank, and over all.
  template <class T>
  HD T before(T value, T& all) const {
    all = value;
    return T(0);
  }
  template <class Body>
  HD void each(int64_t n, Body body) const {
#pragma omp simd
    for (int64_t k = 0; k < n; k++) body(k);
  }
  template <class Body>
  HD void each_part(int64_t n, Body body) const {
    for (int64_t k = 0; k < n; k++) body(k, *this);
  }
  template <class Body>
  HD auto sum(int64_t n, Body body) const {
    decltype(body(n)) total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t k = 0; k < n; k++) total += body(k);
    return total;
  }
  // The sums of body(i, k), one for each k < K.
  template <int K, class T, class Body>
  HD void sums(int64_t n, T (&out)[K], Body body) const {
    for (int k = 0; k < K; k++) out[k] = sum(n, [=](int64_t i) { return body(i, k); });
  }
  static constexpr int64_t kMemory = 0;
  HD double* memory() const { return nullptr; }
};
template <class Body>
LOSSREG_CLONES void each_loop(Body body, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) body(i);
}
template <class Body>
LOSSREG_CLONES void team_loop(Body body, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) body(i, Team{});
}
template <int K, class Body>
LOSSREG_CLONES void total_loop(Body body, int64_t begin, int64_t end, double (&sums)[K]) {
  for (int64_t i = begin; i < end; i++) body(i, sums);
}

}  // namespace lossreg::cpu
