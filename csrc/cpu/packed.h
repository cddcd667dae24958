#pragma once
// Products of matrices of bfloat16 with a result of float32, by the processor's own instruction for that. torch's
// products of them round the result to bfloat16.
#include <memory>

#include "../base/tensor.h"
#include "chunks.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(_WIN32)
#include <immintrin.h>
#define LOSSREG_PACKED __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace lossreg::cpu {

constexpr bool kPacks = true;
inline bool multiplies_bfloat16() {
  static const bool yes = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
  return yes;
}

// Two neighbouring numbers along the dimension that is summed over, of which the first is in the lower half.
using Pair = uint32_t;

// The right factor (K, N) of many products, in panels of 64 columns by 256 pairs of rows, which find room in L2. A
// panel holds its pairs one after the other, each as four vectors. Behind the last row and column are zeros.
class PackedMatrix {
 public:
  explicit PackedMatrix(const Tensor& b)
      : depth_(b.size(0)),
        columns_(b.size(1)),
        pairs_((depth_ + 1) / 2),
        panels_((columns_ + kColumns - 1) / kColumns),
        data_(new_empty(b, {panels_ * pairs_ * kColumns}, DType::int32)) {
    const auto* from = static_cast<const uint16_t*>(b.const_data_ptr());
    const int64_t down = b.strides()[0], along = b.strides()[1];
    each_chunk<Sweep::forward>(panels_ * blocks(), 1, [&](int64_t i, int64_t, int64_t) {
      const int64_t first = i / panels_ * kPairs, at = i % panels_ * kColumns;
      pack(panel(i / panels_, i % panels_), from + 2 * first * down + at * along, down, along, depth_ - 2 * first,
           std::min(kPairs, pairs_ - first), std::min(kColumns, columns_ - at));
    });
  }

  // out = a b, of which row i is multiplied by of_rows[i] and column j by of_columns[j], where these are given.
  void product(const Tensor& out, const Tensor& a, const float* of_rows, const float* of_columns) const {
    const Left left{static_cast<const uint16_t*>(a.const_data_ptr()), a.strides()[0], a.strides()[1], of_rows};
    float* to = static_cast<float*>(out.mutable_data_ptr());
    const int64_t row = out.strides()[0];
    if (pairs_ == 0) torch::stable::zero_(const_cast<Tensor&>(out));
    each_chunk<Sweep::forward>(a.size(0), kBlockRows, [&](int64_t, int64_t begin, int64_t end) {
      multiply_rows(left, begin, end, to, row, of_columns);
    });
  }

 private:
  static constexpr int kRows = 6, kVectors = 4, kLanes = 16;
  static constexpr int64_t kColumns = kVectors * kLanes, kPairs = 256, kBlockRows = 16 * kRows;
  struct Left {
    const uint16_t* data;
    int64_t row, step;
    const float* scale;
  };

  int64_t blocks() const { return (pairs_ + kPairs - 1) / kPairs; }
  Pair* panel(int64_t block, int64_t n) const {
    const int64_t first = block * kPairs, pairs = std::min(kPairs, pairs_ - first);
    return static_cast<Pair*>(const_cast<void*>(data_.const_data_ptr())) + (first * panels_ + n * pairs) * kColumns;
  }

  static Pair pair(const uint16_t* first, int64_t step, bool whole) {
    return Pair(first[0]) | (whole ? Pair(first[step]) << 16 : 0);
  }
  static void pack(Pair* to, const uint16_t* from, int64_t down, int64_t along, int64_t depth, int64_t pairs,
                   int64_t columns) {
    if (columns < kColumns) std::fill(to, to + pairs * kColumns, 0);
    for (int64_t k = 0; k < pairs; k++) {
      const uint16_t* row = from + 2 * k * down;
      const bool whole = 2 * k + 1 < depth;
      if (along == 1 && whole)
        for (int64_t j = 0; j < columns; j++) to[k * kColumns + j] = pair(row + j, down, true);
      else
        for (int64_t j = 0; j < columns; j++) to[k * kColumns + j] = pair(row + j * along, down, whole);
    }
  }

  void multiply_rows(const Left& left, int64_t begin, int64_t end, float* out, int64_t out_row,
                     const float* of_columns) const {
    const std::unique_ptr<Pair[]> rows(new Pair[size_t(kBlockRows * kPairs)]);
    for (int64_t block = 0; block < blocks(); block++) {
      const int64_t first = block * kPairs, pairs = std::min(kPairs, pairs_ - first);
      for (int64_t i = 0; i < kBlockRows; i++) {
        Pair* to = rows.get() + i * kPairs;
        if (begin + i < end) copy_row(to, left, begin + i, first, pairs);
        else if ((begin + i - end) < kRows) std::fill(to, to + pairs, 0);
      }
      const bool last = block + 1 == blocks();
      for (int64_t n = 0; n < panels_; n++)
        for (int64_t i = begin; i < end; i += kRows) {
          const int64_t at = n * kColumns;
          multiply_tile(rows.get() + (i - begin) * kPairs, panel(block, n), pairs, out + i * out_row + at, out_row,
                        int(std::min<int64_t>(kRows, end - i)), int(std::min(kColumns, columns_ - at)), block > 0,
                        last && left.scale ? left.scale + i : nullptr, last && of_columns ? of_columns + at : nullptr);
        }
    }
  }
  void copy_row(Pair* to, const Left& left, int64_t i, int64_t first, int64_t pairs) const {
    const uint16_t* from = left.data + i * left.row + 2 * first * left.step;
    const int64_t there = depth_ - 2 * first, whole = std::min(pairs, there / 2);
    if (left.step == 1) std::memcpy(to, from, size_t(whole) * sizeof(Pair));
    else
      for (int64_t k = 0; k < whole; k++) to[k] = pair(from + 2 * k * left.step, left.step, true);
    if (whole < pairs) to[whole] = pair(from + 2 * whole * left.step, left.step, false);
  }

  // A tile of the result, whose sums stay in registers: of `rows` rows and `columns` columns, or fewer.
  LOSSREG_PACKED static void multiply_tile(const Pair* a, const Pair* b, int64_t pairs, float* out, int64_t out_row,
                                           int rows, int columns, bool add, const float* of_rows,
                                           const float* of_columns) {
    __m512 sum[kRows][kVectors];
    for (int i = 0; i < kRows; i++)
      for (int v = 0; v < kVectors; v++) sum[i][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
      __m512i right[kVectors];
      for (int v = 0; v < kVectors; v++) right[v] = _mm512_loadu_si512(b + k * kColumns + v * kLanes);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; i++) {
        const __m512i left = _mm512_set1_epi32(int(a[i * kPairs + k]));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)left, (__m512bh)right[v]);
      }
    }
    for (int i = 0; i < rows; i++)
      for (int v = 0; v < kVectors; v++) {
        const int left = columns - v * kLanes;
        const __mmask16 there = left >= kLanes ? 0xffff : left > 0 ? __mmask16((1 << left) - 1) : 0;
        float* to = out + i * out_row + v * kLanes;
        __m512 x = sum[i][v];
        if (add) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(there, to));
        if (of_rows) x = _mm512_mul_ps(x, _mm512_set1_ps(of_rows[i]));
        if (of_columns) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(there, of_columns + v * kLanes));
        _mm512_mask_storeu_ps(to, there, x);
      }
  }

  int64_t depth_, columns_, pairs_, panels_;
  Tensor data_;
};

}  // namespace lossreg::cpu
#else
namespace lossreg::cpu {

constexpr bool kPacks = false;
inline bool multiplies_bfloat16() {
  return false;
}
struct PackedMatrix {};

}  // namespace lossreg::cpu
#endif
