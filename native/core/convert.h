#pragma once
#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "core/qualifiers.h"

// bf16 and f16 are storage formats: values are converted to float32 for arithmetic, and rounded back to nearest even.
namespace st_moe {

ST_MOE_HOST_DEVICE static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

ST_MOE_HOST_DEVICE static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

ST_MOE_HOST_DEVICE static inline float bf16_to_float(uint16_t value) {
  return bits_to_float(static_cast<uint32_t>(value) << 16);
}

ST_MOE_HOST_DEVICE static inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // keep NaN a NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

ST_MOE_HOST_DEVICE static inline float f16_to_float(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000u) << 16;
  const uint32_t exponent = (value >> 10) & 0x1fu, fraction = value & 0x3ffu;
  if (exponent == 0x1f) return bits_to_float(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return bits_to_float(sign | (exponent + 112u) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

ST_MOE_HOST_DEVICE static inline uint16_t float_to_f16(float value) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                                               // subnormal: the float adder rounds
    const uint32_t sum = float_to_bits(bits_to_float(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (sum - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

// Rounds to the float with an odd last bit unless the value is a float. A second rounding, to bf16 or f16, is then as
// one of the double (Boldo, Melquiond: Emulation of FMA and correctly rounded sums, 2008, §3).
ST_MOE_HOST_DEVICE static inline float double_to_odd_float(double value) {
  const float nearest = static_cast<float>(value);
  const double distance = static_cast<double>(nearest) - value;
  const bool away = value < 0 ? distance < 0 : distance > 0;
  const uint32_t bits = float_to_bits(nearest), odd = (bits - (away ? 1u : 0u)) | 1u;
  return bits_to_float(distance < 0 || distance > 0 ? odd : bits);  // the distance of NaN and of infinity is NaN
}

ST_MOE_HOST_DEVICE static inline uint16_t double_to_bf16(double value) {
  return float_to_bf16(double_to_odd_float(value));
}

ST_MOE_HOST_DEVICE static inline uint16_t double_to_f16(double value) {
  return float_to_f16(double_to_odd_float(value));
}

// Towards zero, clamped to int32; NaN becomes 0. Without branches, so that loops are vectorized.
ST_MOE_HOST_DEVICE static inline int32_t saturate(double value) {
  value = value == value ? value : 0.0;
  value = value > 2147483647.0 ? 2147483647.0 : value;
  value = value < -2147483648.0 ? -2147483648.0 : value;
  return static_cast<int32_t>(value);
}

// Calls f with the value rounded to the dtype, in the type of its elements.
template <class F>
static inline void dispatch_rounded(DType dtype, double value, F&& f) {
  switch (dtype) {
    case DType::f32: return f(static_cast<float>(value));
    case DType::f64: return f(value);
    case DType::bf16: return f(double_to_bf16(value));
    case DType::f16: return f(double_to_f16(value));
    case DType::i32: return f(saturate(value));
    case DType::int8: return;  // no tensor of elements
  }
}

}  // namespace st_moe
