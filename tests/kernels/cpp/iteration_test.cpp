// Index spaces: the division by a product and a shift, and the offsets of elements on both sides of 2^31.
#include "base/iteration.h"

#include <cstdio>
#include <random>

using namespace lossreg;

static std::mt19937_64 random_bits{7};
static int64_t failures = 0, compared = 0;

static void check(bool equal, const char* what, int64_t a, int64_t b) {
  compared++;
  if (!equal && failures++ < 10) std::printf("%s differs for %lld and %lld\n", what, (long long)a, (long long)b);
}

// Divisors and dividends of every length in bits, and their neighbours, where a rounding error would show first.
static void divisors() {
  for (int round = 0; round < 2000; round++) {
    auto draw = [] { return uint32_t(random_bits() >> (33 + random_bits() % 31)); };
    uint32_t d = std::max(1u, round < 40 ? uint32_t(round) : draw());
    Divisor divisor(d);
    for (int i = 0; i < 200; i++) {
      uint32_t n = draw();
      uint32_t multiple = n - n % d;
      for (uint32_t m : {n, multiple, multiple - (multiple > 0), 0u, 1u, uint32_t(INT32_MAX)})
        check(divisor.quotient(m) == m / d, "quotient", m, d);
    }
  }
}

// Against division and remainder, in spaces of up to four dimensions with broadcast ones among them.
static void offsets() {
  for (int round = 0; round < 3000; round++) {
    bool large = round % 3 == 0;
    std::vector<int64_t> shape(random_bits() % 5);
    for (int64_t& size : shape) size = 1 + int64_t(random_bits() % (large ? 3000 : 9));
    static float memory;
    View views[2] = {{&memory, DType::float32, {}}, {&memory, DType::float32, {}}};
    int64_t step = 1;
    for (size_t d = shape.size(); d-- > 0; step *= shape[d])
      for (View& view : views)
        view.strides.insert(view.strides.begin(), random_bits() % 4 == 0 ? 0 : step * int64_t(1 + random_bits() % 2));
    auto it = make_iteration<2>("test", shape, views);
    if (it.numel == 0) continue;
    auto expected = [&](int64_t index, int64_t (&offset)[2]) {
      offset[0] = offset[1] = 0;
      for (int d = 0; d < it.dims; d++) {
        int64_t place = index % it.size[d];
        for (int k = 0; k < 2; k++) offset[k] += place * it.operand[k].stride[d];
        index /= it.size[d];
      }
    };
    int64_t tries = std::min<int64_t>(it.numel, 300);
    for (int64_t i = 0; i < tries; i++) {
      int64_t index = it.numel <= 300 ? i : i < 2 ? i * (it.numel - 1) : int64_t(random_bits() % uint64_t(it.numel));
      int64_t got[2], want[2];
      it.offsets(index, got);
      expected(index, want);
      check(got[0] == want[0] && got[1] == want[1], "offsets", index, it.numel);
      for (int k = 0; k < 2; k++) {
        int64_t next = std::min(index + 1, it.numel - 1), together[2] = {index, next};
        it.to_offsets(k, together);
        expected(next, got);
        check(together[0] == want[k] && together[1] == got[k], "to_offsets", index, it.numel);
      }
    }
  }
}

int main() {
  divisors();
  offsets();
  std::printf("%lld compared\n", (long long)compared);
  return failures > 0;
}
