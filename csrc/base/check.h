#pragma once
// Errors that a user sees: every message names the op, what it expected and what came.
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dtype.h"

namespace lossreg {

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": expected ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// expect(delta > 0, "huber_loss", "delta > 0", delta). Write the condition so that a NaN fails it.
template <class Value>
void expect(bool condition, const char* op, const char* expectation, const Value& got) {
  if (!condition) fail(op, expectation, ", got ", got);
}

[[noreturn]] inline void fail_class(const char* op, int64_t classes, int64_t ignore_index, int64_t got) {
  fail(op, "a class index in [0, ", classes, ") or ignore_index ", ignore_index, ", got ", got);
}

// The product of the sizes of a tensor, or of an array that will be made. It is checked, because the sizes of an
// expanded tensor can have a product that no int64 holds; and limited, so that bytes and offsets can be computed from
// it without a check. If one size is 0, so is the product, whatever the others are.
inline int64_t element_count(const char* op, const std::vector<int64_t>& sizes) {
  int64_t count = 1;
  bool fits = true;
  for (int64_t s : sizes) fits = !__builtin_mul_overflow(count, s, &count) && fits;
  for (int64_t s : sizes)
    if (s == 0) return 0;
  if (!fits || count > INT64_MAX / 16) fail(op, "fewer than 2^59 elements, got ", shape_text(sizes));
  return count;
}

enum class Reduction { none, mean, sum, batchmean };

inline Reduction parse_reduction(const char* op, const std::string& text, bool batchmean) {
  if (text == "none") return Reduction::none;
  if (text == "mean") return Reduction::mean;
  if (text == "sum") return Reduction::sum;
  if (batchmean && text == "batchmean") return Reduction::batchmean;
  fail(op, "reduction \"none\", \"mean\"", batchmean ? ", \"sum\" or \"batchmean\"" : " or \"sum\"", ", got \"", text,
       "\"");
}

}  // namespace lossreg
