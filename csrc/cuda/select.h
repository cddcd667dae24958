#pragma once
// The k smallest of a list of keys, by radix: see Backend::select_smallest. Each pass takes ten bits of the keys that
// are still in question, counts how often each of their values occurs, and the last block finds the one in which the
// k-th key lies. The same passes over the places of the keys at the cut then find the last one that belongs to the k.
#include "../base/selection.h"
#include "reduce.h"

namespace lossreg::cuda {

constexpr int kDigitBits = 10;
constexpr int kDigits = 1 << kDigitBits;

// What is known before a pass.
struct SelectState {
  uint64_t prefix;  // the digits so far, of the k-th key or of a place
  int64_t rest;     // how many of the keys with that prefix belong to the k
  Selection found;  // what is final of it
  bool done;
};

template <class Key>
struct SelectPass {
  const Key* key;
  int64_t n;
  int shift;  // of the pass's digit
  int64_t k;
  const double* there;        // where there are k already, nothing is selected
  bool places;                // of places at the cut, no longer of keys
  bool first, last;           // of the passes over keys, or over places
  const SelectState* before;  // null before the first pass of all
  SelectState* after;
  Selection* out;    // of the last pass of all
  unsigned* counts;  // of each digit, all zero at the beginning
  Arrivals arrivals;

  __device__ SelectState begin() const {
    if (before) return *before;
    return {0, k, Selection::nothing(), *there >= double(k)};
  }
  __device__ void leave(const SelectState& state) const {
    *after = state;
    if (out) *out = state.found;
  }
  // Key i, or its place; and is it in question?
  __device__ bool digit_of(int64_t i, const SelectState& state, unsigned& digit) const {
    const uint64_t own = key[i], value = places ? uint64_t(i) : own;
    digit = unsigned(value >> shift) % kDigits;
    return (!places || own == state.found.cut) && (first || value >> (shift + kDigitBits) == state.prefix);
  }
  // By the thread in whose digits the k-th key lies: `below` keys in question have a smaller digit, `among` this one.
  __device__ void close(SelectState state, unsigned digit, int64_t below, int64_t among) const {
    state.prefix = (first ? 0 : state.prefix << kDigitBits) | digit;
    state.rest -= below;
    if (last && !places) {
      state.found = {state.prefix, INT64_MAX};
      state.done = state.rest == among;  // all keys at the cut belong to the k
    } else if (last) {
      state.found.last = int64_t(state.prefix);
    }
    leave(state);
  }
};

template <class Key>
__global__ void __launch_bounds__(kThreads) select_pass(const __grid_constant__ SelectPass<Key> pass) {
  const SelectState state = pass.begin();
  if (state.done) {
    if (global_thread() == 0) pass.leave(state);
    return;
  }
  __shared__ unsigned counts[kDigits];
  for (unsigned d = threadIdx.x; d < kDigits; d += kThreads) counts[d] = 0;
  __syncthreads();
  LOSSREG_UNROLL_BY(4)
  for (int64_t i = global_thread(); i < pass.n; i += all_threads()) {
    unsigned digit;
    if (pass.digit_of(i, state, digit)) atomicAdd(counts + digit, 1u);
  }
  __syncthreads();
  for (unsigned d = threadIdx.x; d < kDigits; d += kThreads)
    if (counts[d]) atomicAdd(pass.counts + d, counts[d]);
  __threadfence();
  __syncthreads();  // what all threads added comes before the arrival
  __shared__ bool last;
  if (threadIdx.x == 0) last = pass.arrivals.is_last(gridDim.x);
  __syncthreads();
  if (!last) return;

  // a thread has neighbouring digits
  constexpr unsigned kOwn = kDigits / kThreads;
  int64_t own[kOwn], sum = 0;
  for (unsigned j = 0; j < kOwn; j++) sum += own[j] = __ldcg(pass.counts + threadIdx.x * kOwn + j);
  int64_t all, below = block_sum_before(sum, all);
  for (unsigned j = 0; j < kOwn; j++) {
    if (below < state.rest && state.rest <= below + own[j]) pass.close(state, threadIdx.x * kOwn + j, below, own[j]);
    below += own[j];
  }
}

// Of keys of so many bits. `like` says on which device.
template <class Key>
void select_smallest(const Tensor& like, const Key* key, int64_t n, int bits, int64_t k, const double* there,
                     Selection* out) {
  auto passes_of = [](int bits) { return std::max(1, (bits + kDigitBits - 1) / kDigitBits); };
  int place_bits = 0;
  while ((n - 1) >> place_bits > 0) place_bits++;
  const int of_keys = passes_of(bits), passes = of_keys + passes_of(place_bits);

  Tensor counts = new_empty(like, {passes * kDigits}, DType::int32);
  call_aten("aten::zero_", "", counts);
  Tensor states = new_empty(like, {passes * int64_t(sizeof(SelectState)) + 8}, DType::uint8);
  auto* after = static_cast<SelectState*>(states.mutable_data_ptr());
  SelectPass<Key> pass{};
  pass.key = key, pass.n = n, pass.k = k, pass.there = there;
  pass.counts = static_cast<unsigned*>(counts.mutable_data_ptr());
  pass.arrivals.word = reinterpret_cast<unsigned long long*>(after + passes);
  for (int p = 0; p < passes; p++) {
    pass.places = p >= of_keys;
    const int begin = pass.places ? of_keys : 0, end = pass.places ? passes : of_keys;
    pass.first = p == begin, pass.last = p == end - 1;
    pass.shift = (end - 1 - p) * kDigitBits;
    pass.after = after + p;
    pass.out = p == passes - 1 ? out : nullptr;
    pass.arrivals.tag = Arrivals::new_tag();
    launch(select_pass<Key>, blocks_for(n, 8), kThreads, pass);
    pass.before = pass.after;
    pass.counts += kDigits;
  }
}

}  // namespace lossreg::cuda
