#pragma once
// Matrix products whose result is too large to be held: it is made some rows at a time, in one matrix.
#include "../../skeletons/standalone.h"

namespace lossreg {

inline Tensor rows_of(const Tensor& t, int64_t first, int64_t count) {
  return narrow(t, 0, first, count);
}
inline Tensor ones(const Tensor& like, const Shape& shape, DType dtype) {
  return torch::stable::fill_(new_empty(like, shape, dtype), 1.0);
}

// out = a b
template <class Backend>
void product(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.scalar_type() == a.scalar_type()) call_aten("aten::mm", "out", a, b, out);
  else Backend::wide_product(out, a, b);
}

// The right factor of many products with a wide result, in which the rows and the columns of a backend's own products
// may be multiplied by numbers of float32.
template <class Backend>
class RightFactor {
 public:
  explicit RightFactor(const Tensor& b) : b_(b) {
    if constexpr (Backend::Products::packs)
      if (b.scalar_type() == ScalarType::BFloat16) packed_.emplace(b);
  }
  void product(const Tensor& out, const Tensor& a, [[maybe_unused]] const float* of_rows = nullptr,
               [[maybe_unused]] const float* of_columns = nullptr) const {
    if constexpr (Backend::Products::packs)
      if (packed_) return packed_->product(out, a, of_rows, of_columns);
    lossreg::product<Backend>(out, a, b_);
  }

 private:
  Tensor b_;
  std::optional<typename Backend::Products::Packed> packed_;
};

// sum += left^T right, of matrices with so many rows; the first term sets it. What is summed in a wider dtype than the
// matrices have is made and added some rows of the sum at a time.
template <class Backend>
void add_over_rows(const char* op, const Tensor& sum, bool first, const Tensor& left, const Tensor& right) {
  Tensor by_column = transposed(left);
  if (sum.scalar_type() == right.scalar_type()) {
    if (first) product<Backend>(sum, by_column, right);
    else Backend::add_product(sum, sum, 1.0, by_column, right);
    return;
  }
  DType wide = *known_dtype(sum.scalar_type());
  int64_t row_bytes = std::max<int64_t>(1, right.size(1)) * size_of(wide);
  int64_t most = std::max<int64_t>(1, Backend::Products::chunk_bytes(0) / 8 / row_bytes);
  for (int64_t at = 0; at < sum.size(0); at += most) {
    int64_t count = std::min(most, sum.size(0) - at);
    Tensor part = new_empty(right, {count, right.size(1)}, wide), to = rows_of(sum, at, count);
    product<Backend>(first ? to : part, rows_of(by_column, at, count), right);
    if (!first) map_tensors<Backend, Add>(op, wide, {to, part}, to);
  }
}

// A state of numbers of dtype `wide` may hold sums of a narrower one: how many numbers so many sums take.
inline int64_t numbers_for(int64_t sums, DType dtype, DType wide) {
  return (sums * size_of(dtype) + size_of(wide) - 1) / size_of(wide);
}
// Such a state, with so many numbers behind the sums. Where the sums end inside a number, its rest is zero: of equal
// calls, the states are equal bit by bit.
inline Tensor new_state(const Tensor& like, int64_t sums, DType dtype, int64_t numbers, DType wide) {
  int64_t held = numbers_for(sums, dtype, wide);
  Tensor state = new_empty(like, {held + numbers}, wide);
  if (sums * size_of(dtype) % size_of(wide) != 0) torch::stable::fill_(rows_of(state, held - 1, 1), 0.0);
  return state;
}
// The memory of a tensor as numbers of another dtype.
inline Tensor viewed_as(const Tensor& t, DType dtype) {
  bool same = t.scalar_type() == scalar_type(dtype);
  return same ? t : call_aten("aten::view", "dtype", t, scalar_type(dtype))[0];
}

// A matrix of so many rows and columns as chunks of about one size; row_step is how far a row lies from the next.
struct RowChunks {
  int64_t total, columns, row_step, count, rows;

  // An entry takes so many bytes in all the matrices that there are of a chunk, and these at most `bytes` together.
  template <class Products>
  static RowChunks of(int64_t total, int64_t columns, int64_t entry_bytes, int64_t bytes) {
    constexpr int64_t whole = Products::whole_rows, step = Products::row_step;
    int64_t row_step = (columns + step - 1) / step * step;
    int64_t most = row_step ? std::max<int64_t>(1, bytes / entry_bytes / row_step) : 1;
    if (most > whole) most -= most % whole;
    int64_t count = row_step ? (total + most - 1) / most : 0;  // nothing to do for no columns
    int64_t rows = count ? (total + count - 1) / count : 0;
    return {total, columns, row_step, count, std::min((rows + whole - 1) / whole * whole, std::min(most, total))};
  }
  // The first row of a chunk, and how many it has: the last may have fewer.
  int64_t first(int64_t chunk) const { return chunk * rows; }
  int64_t size(int64_t chunk) const { return std::min(rows, total - first(chunk)); }
  // Of one chunk, on the device of `like`.
  Tensor matrix(const Tensor& like, DType dtype) const {
    return empty_strided(like, {rows, columns}, {std::max<int64_t>(1, row_step), 1}, dtype);
  }
};

}  // namespace lossreg
