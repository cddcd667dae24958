#pragma once
// Operands of any dtype, anywhere in memory, as numbers of type T in a block's shared memory: a tile of elements at
// once. What lies in memory in order comes in copies of 16 bytes, all of them under way before the first is waited for,
// whatever the dtype and wherever it begins. From there on a thread takes element by element.
#include "memory.h"

namespace lossreg::cuda {

constexpr int kStageBytes = 24 << 10;  // a multiprocessor has room for at least four, on an H100 for eight
struct alignas(16) StageMemory {
  unsigned char bytes[kStageBytes];
};

// How the first I operands of an index space lie in it.
template <int I>
struct Stage {
  struct Place {
    unsigned bytes;      // of an element in memory
    unsigned behind;     // how many elements the first one lies behind a boundary of 16 bytes, in memory as here
    unsigned raw;        // the boundary from which on the elements arrive as they are,
    unsigned converted;  // and that from which on they are numbers of type T
    unsigned step;       // bytes from one of these to the next; 0 where one serves the whole index space
  };
  Place at[I];
  unsigned tile;  // elements

  template <class T, int N>
  static Stage of(const Iteration<N>& it) {
    // an operand's bytes before the first element of a tile and behind the last one, in both forms
    constexpr unsigned kSlack = 32 + 16 * (sizeof(T) + 1);
    static_assert(I * (kThreads * (8 + sizeof(T)) + kSlack) <= kStageBytes, "a tile has an element a thread at least");
    Stage stage;
    unsigned of_element = 0;
    for (int k = 0; k < I; k++) {
      const Operand& o = it.operand[k];
      auto bytes = unsigned(size_of(o.dtype));
      auto off_boundary = unsigned(reinterpret_cast<uintptr_t>(o.data) % 16);
      stage.at[k] = {bytes, o.flat && !o.uniform ? off_boundary / bytes : 0, 0, 0, o.uniform ? 0 : unsigned(sizeof(T))};
      if (!o.uniform) of_element += bytes + (is_converted<T>(o) ? unsigned(sizeof(T)) : 0);
    }
    unsigned fit = (kStageBytes - I * kSlack) / std::max(of_element, 1u) / kThreads * kThreads;
    stage.tile = std::min(fit, 8 * kThreads);
    unsigned next = 0;
    auto take = [&](unsigned bytes) { return std::exchange(next, next + (bytes + 15) / 16 * 16); };
    for (int k = 0; k < I; k++) {
      Place& p = stage.at[k];
      unsigned elements = it.operand[k].uniform ? 1 : (p.behind + stage.tile + 3) / 4 * 4;
      if (!it.operand[k].uniform) p.raw = take(elements * p.bytes);
      p.converted = is_converted<T>(it.operand[k]) ? take(elements * unsigned(sizeof(T))) : p.raw;
    }
    return stage;
  }

  // Number j of operand k in the tile that was read.
  template <class T>
  __device__ T get(const unsigned char* memory, int k, unsigned j) const {
    return *reinterpret_cast<const T*>(memory + at[k].converted + (at[k].behind + j) * at[k].step);
  }

  template <class T>
  HD static bool is_converted(const Operand& o) {
    return o.uniform || o.dtype != dtype_of_storage<T>;
  }
};

// n bytes that lie in memory one after the other. What fills no 16 goes byte by byte.
__device__ inline void copy_in_order(unsigned char* shared, const unsigned char* memory, unsigned n) {
  unsigned head = std::min(unsigned(-reinterpret_cast<intptr_t>(memory)) % 16, n), body = (n - head) / 16 * 16;
  LOSSREG_UNROLL_BY(2)
  for (unsigned b = threadIdx.x * 16; b < body; b += kThreads * 16) copy_16_bytes(shared + head + b, memory + head + b);
  unsigned b = threadIdx.x < head ? threadIdx.x : threadIdx.x + body;
  if (threadIdx.x < n - body) shared[b] = memory[b];
}

// Elements that lie anywhere, some of each thread's at once.
constexpr int kGathered = 2;
template <class Bits>
__device__ void gather(unsigned char* shared, const void* memory, const int64_t (&offset)[kGathered], unsigned j,
                       unsigned n) {
  Bits x[kGathered] = {};
  LOSSREG_UNROLL
  for (int m = 0; m < kGathered; m++)
    if (j + m * kThreads < n) x[m] = static_cast<const Bits*>(memory)[offset[m]];
  LOSSREG_UNROLL
  for (int m = 0; m < kGathered; m++)
    if (j + m * kThreads < n) reinterpret_cast<Bits*>(shared)[j + m * kThreads] = x[m];
}
template <int N>
__device__ void gather_tile(const Iteration<N>& it, int k, unsigned bytes, int64_t first, unsigned n,
                            unsigned char* shared) {
  LOSSREG_UNROLL_BY(1)
  for (unsigned j = threadIdx.x; j < n; j += kGathered * kThreads) {
    int64_t offset[kGathered];
    for (int m = 0; m < kGathered; m++) offset[m] = first + std::min(j + m * kThreads, n - 1);
    it.to_offsets(k, offset);
    const void* memory = it.operand[k].data;
    if (bytes == 1) gather<uint8_t>(shared, memory, offset, j, n);
    else if (bytes == 2) gather<uint16_t>(shared, memory, offset, j, n);
    else if (bytes == 4) gather<uint32_t>(shared, memory, offset, j, n);
    else gather<uint64_t>(shared, memory, offset, j, n);
  }
}

// Four neighbours, which begin on a boundary of so many.
template <class S>
struct alignas(4 * sizeof(S) < 16 ? 4 * sizeof(S) : 16) Four {
  S at[4];
};

// Reads the n elements of a tile that begins at `first`; is_first: of this block. A barrier has to come before the
// next.
template <class T, int I, int N>
__device__ void read_tile(const Iteration<N>& it, const Stage<I>& stage, int64_t first, unsigned n, bool is_first,
                          unsigned char* memory) {
  // loops, so that one text serves all operands
  LOSSREG_UNROLL_BY(1)
  for (int k = 0; k < I; k++) {
    const Operand& o = it.operand[k];
    const auto& place = stage.at[k];
    unsigned char* raw = memory + place.raw + place.behind * place.bytes;
    if (o.uniform) continue;
    if (!o.flat) gather_tile(it, k, place.bytes, first, n, raw);
    else copy_in_order(raw, static_cast<const unsigned char*>(o.data) + first * place.bytes, n * place.bytes);
  }
  // one number for the whole index space: a thread each
  if (is_first && threadIdx.x < I && it.operand[threadIdx.x].uniform)
    *reinterpret_cast<T*>(memory + stage.at[threadIdx.x].converted) = read<T>(it.operand[threadIdx.x], 0);
  wait_for_copies();
  __syncthreads();
  LOSSREG_UNROLL_BY(1)
  for (int k = 0; k < I; k++) {
    const Operand& o = it.operand[k];
    if (o.uniform || !Stage<I>::template is_converted<T>(o)) continue;
    LOSSREG_UNROLL_BY(1)
    for (unsigned j = threadIdx.x; j * 4 < stage.at[k].behind + n; j += kThreads)
      with_storage(o.dtype, [&](auto* tag) {
        auto x = reinterpret_cast<const Four<std::remove_pointer_t<decltype(tag)>>*>(memory + stage.at[k].raw)[j];
        Four<T> y;
        for (int m = 0; m < 4; m++) y.at[m] = widen<T>(x.at[m]);
        reinterpret_cast<Four<T>*>(memory + stage.at[k].converted)[j] = y;
      });
  }
  __syncthreads();
}

}  // namespace lossreg::cuda
