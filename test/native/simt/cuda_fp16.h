#pragma once
#include <cstring>

#include "core/convert.h"
#include "cuda_runtime.h"

struct alignas(2) __half {
  unsigned short bits;
  __half() = default;
  explicit __half(float value) : bits(st_moe::float_to_f16(value)) {}
  explicit operator float() const { return st_moe::f16_to_float(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half __float2half_rn(float value) {
  return __half(value);
}
inline __half __float2half(float value) {
  return __half(value);
}
inline float __half2float(__half value) {
  return static_cast<float>(value);
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline float2 __half22float2(__half2 value) {
  return {static_cast<float>(value.x), static_cast<float>(value.y)};
}
inline unsigned short __half_as_ushort(__half value) {
  return value.bits;
}
inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  value.bits = bits;
  return value;
}
