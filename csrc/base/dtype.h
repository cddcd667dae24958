#pragma once
// Element types: what a tensor may hold, and conversion to and from the type that is computed in.
#include <type_traits>

#include "math.h"

namespace lossreg {

enum class DType : int8_t { float64, float32, bfloat16, float16, int64, int32, int16, int8, uint8, boolean };

HD constexpr bool is_floating(DType d) {
  return d <= DType::float16;
}
HD constexpr int size_of(DType d) {
  switch (d) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::bfloat16:
    case DType::float16:
    case DType::int16:
      return 2;
    default:
      return 1;
  }
}
constexpr const char* name_of(DType d) {
  constexpr const char* names[] = {"float64", "float32", "bfloat16", "float16", "int64",
                                   "int32",   "int16",   "int8",     "uint8",   "bool"};
  return names[int(d)];
}

// Storage types of the formats that C++17 lacks.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class S>
constexpr DType dtype_of_storage = std::is_same_v<S, double>     ? DType::float64
                                   : std::is_same_v<S, float>    ? DType::float32
                                   : std::is_same_v<S, BFloat16> ? DType::bfloat16
                                                                 : DType::float16;

template <class T, class S>
HD T widen(S s) {
  return T(s);
}
template <class T>
HD T widen(BFloat16 s) {
  return T(bits<float>(uint32_t(s.bits) << 16));
}
template <class T>
HD T widen(Float16 s) {
#if defined(LOSSREG_ON_DEVICE)
  return T(__half2float(__ushort_as_half(s.bits)));
#else
  // Move exponent and mantissa into a float's place and mend the exponent by an exact product: 255 stays 255, so that
  // infinity and NaN come out right. A denormal is an integer times 2^-24.
  uint32_t magnitude = uint32_t(s.bits & 0x7fffu), sign = uint32_t(s.bits & 0x8000u) << 16;
  float normal = bits<float>((magnitude << 13) + 0x70000000u) * 1.9259299443872359e-34f;  // 2^-112
  float denormal = float(int32_t(magnitude)) * 5.9604644775390625e-8f;                    // 2^-24
  float value = magnitude < 0x0400u ? denormal : normal;
  return T(bits<float>(bits<uint32_t>(value) | sign));
#endif
}

template <class S>
struct Narrow {
  template <class T>
  HD static S from(T x) {
    return S(x);
  }
};
template <>
struct Narrow<BFloat16> {
  template <class T>
  HD static BFloat16 from(T x) {
    // Round to nearest, ties to even; a NaN becomes a quiet one.
    const float f = float(x);
#if defined(LOSSREG_ON_DEVICE)
    // One instruction rounds two neighbours.
    return {__bfloat16_as_ushort(__float2bfloat16_rn(f))};
#else
    const uint32_t b = bits<uint32_t>(f), rounded = b + 0x7fffu + ((b >> 16) & 1u);
    return {uint16_t((f != f ? 0x7fc00000u : rounded) >> 16)};
#endif
  }
};
template <>
struct Narrow<Float16> {
  template <class T>
  HD static Float16 from(T x) {
#if defined(LOSSREG_ON_DEVICE)
    return {__half_as_ushort(__float2half_rn(float(x)))};
#else
    uint32_t b = bits<uint32_t>(float(x)), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7fffffffu;
    // normal: rebias the exponent by 112, round the 13 bits that fall off to nearest even
    uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // denormal: adding 0.5 makes the adder round at the place where the format's last bit is
    uint32_t denormal = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t y = magnitude < 0x38800000u ? denormal : normal;
    y = magnitude >= 0x477ff000u ? 0x7c00u : y;  // 65520 and beyond: infinity
    y = magnitude > 0x7f800000u ? 0x7e00u : y;
    return {uint16_t(y | sign)};
#endif
  }
};

// Two neighbours in memory, as a word.
template <class S, class T>
HD uint32_t narrow_pair(T low, T high) {
#if defined(LOSSREG_ON_DEVICE)
  // one instruction rounds both
  if constexpr (std::is_same_v<S, BFloat16>) return bits<uint32_t>(__floats2bfloat162_rn(float(low), float(high)));
  else return bits<uint32_t>(__floats2half2_rn(float(low), float(high)));
#else
  return uint32_t(Narrow<S>::from(low).bits) | uint32_t(Narrow<S>::from(high).bits) << 16;
#endif
}

// Calls body with a null pointer of the storage type. These two are the only switches over dtypes.
template <class Body>
HD void with_floating_storage(DType d, Body body) {
  switch (d) {
    case DType::float64:
      return body(static_cast<double*>(nullptr));
    case DType::float32:
      return body(static_cast<float*>(nullptr));
    case DType::bfloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::float16:
      return body(static_cast<Float16*>(nullptr));
    default:
      return;
  }
}
template <class Body>
HD void with_storage(DType d, Body body) {
  switch (d) {
    default:
      return with_floating_storage(d, body);
    case DType::int64:
      return body(static_cast<int64_t*>(nullptr));
    case DType::int32:
      return body(static_cast<int32_t*>(nullptr));
    case DType::int16:
      return body(static_cast<int16_t*>(nullptr));
    case DType::int8:
      return body(static_cast<int8_t*>(nullptr));
    case DType::uint8:
      return body(static_cast<uint8_t*>(nullptr));
    case DType::boolean:
      return body(static_cast<bool*>(nullptr));
  }
}

}  // namespace lossreg
