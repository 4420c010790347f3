#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/qualifiers.h"

// Logarithms and powers in float32, for the CPU: the same bits with every C library. As in formulas.h there are no
// branches and no calls, so that a plain loop is vectorized. Sums of products are written so that a compiler can fuse
// them in one way only.
namespace st_moe {

// log(2^k · (1 + f)) for −1/4 ≤ f < 1/2. Both parts of ln 2 have so few digits that k times the high one is exact, and
// high + low is the sum without an error. log(1 + f) = f + f² Q(f), Q a minimax polynomial of degree 8: the relative
// error is 5e-9.
ST_MOE_HOST_DEVICE static inline float log_parts(float k, float f) {
  float q = -4.52088751e-2f;
  q = q * f + 1.04831874e-1f;
  q = q * f - 1.31701872e-1f;
  q = q * f + 1.44782528e-1f;
  q = q * f - 1.66463405e-1f;
  q = q * f + 1.99907228e-1f;
  q = q * f - 2.50001192e-1f;
  q = q * f + 3.33334535e-1f;
  q = q * f - 5.0e-1f;
  const float high = k * 0x1.62e400p-1f + f, low = (k * 0x1.62e400p-1f - high) + f;
  return high + ((f * f) * q + (k * 0x1.7f7d1cp-20f + low));
}

// ln x: within 1 ulp, also of subnormal x.
ST_MOE_HOST_DEVICE static inline float log_float(float x) {
#if defined(__CUDA_ARCH__)
  return ::logf(x);
#else
  const bool is_small = x < 0x1p-126f;
  const float scaled = is_small ? x * 0x1p32f : x;
  uint32_t bits;
  std::memcpy(&bits, &scaled, 4);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f400000u) >> 23;  // so that the rest is in [3/4, 3/2)
  const uint32_t rest = bits - (static_cast<uint32_t>(exponent) << 23);
  float m;
  std::memcpy(&m, &rest, 4);
  const float log = log_parts(static_cast<float>(exponent) - (is_small ? 32.0f : 0.0f), m - 1.0f);
  const float infinity = HUGE_VALF, other = x == 0.0f ? -infinity : NAN;
  return x > 0.0f ? (x < infinity ? log : x) : other;
#endif
}

// ln(1 + x) for 0 ≤ x ≤ 1: within 1 ulp. A NaN stays NaN.
ST_MOE_HOST_DEVICE static inline float log1p_of_fraction(float x) {
#if defined(__CUDA_ARCH__)
  return ::log1pf(x);
#else
  return x < 0.5f ? log_parts(0.0f, x) : log_parts(1.0f, 0.5f * x - 0.5f);
#endif
}

// log2 x in double for a positive float x, 2/ln 2 · artanh s with s = f / (2 + f), by a minimax polynomial
// of s²: relative error 2e-13.
ST_MOE_HOST_DEVICE static inline double log2_of_float(float x) {
  const double wide = static_cast<double>(x);  // in which every float is normal
  uint64_t bits;
  std::memcpy(&bits, &wide, 8);
  const uint64_t exponent = (bits + 0x0008000000000000u) >> 52, rest = bits - (exponent << 52) + 0x3ff0000000000000u;
  const uint64_t shifted = exponent | 0x4330000000000000u;  // 2^52 + exponent
  double m, k;
  std::memcpy(&m, &rest, 8);
  std::memcpy(&k, &shifted, 8);
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double p = 0.2908743603583902;
  p = p * square + 0.31928117137205253;
  p = p * square + 0.41222629321754006;
  p = p * square + 0.5770777541048593;
  p = p * square + 0.9617966948317594;
  p = p * square + 2.8853900817774205;
  return p * s + (k - 0x1.00000000003ffp52);
}

// 2^x for a double −200 ≤ x ≤ 200: 2^n times a minimax polynomial of degree 7, relative error 4e-11.
ST_MOE_HOST_DEVICE static inline double exp2_double(double x) {
  const double magic = 0x1.8p52, shifted = x + magic, r = x - (shifted - magic);
  double p = 1.5201922672168197e-05;
  p = p * r + 0.00015469291249220815;
  p = p * r + 0.001333392255953299;
  p = p * r + 0.0096180272533015;
  p = p * r + 0.05550410353452818;
  p = p * r + 0.24022651198160896;
  p = p * r + 0.6931471807284455;
  p = p * r + 0.9999999999616814;
  uint64_t bits, n;
  std::memcpy(&bits, &p, 8);
  std::memcpy(&n, &shifted, 8);
  bits += n << 52;
  std::memcpy(&p, &bits, 8);
  return p;
}

// x^y as IEEE 754 and C define it, within 0.51 ulp.
ST_MOE_HOST_DEVICE static inline float pow_float(float x, float y) {
#if defined(__CUDA_ARCH__)
  return ::powf(x, y);
#else
  const float infinity = HUGE_VALF, magnitude = std::fabs(x), size = std::fabs(y);
  // Floats from 2^24 on are even. A NaN becomes 2^24.
  const float whole = size < 0x1p24f ? size : 0x1p24f;
  const int32_t integer = static_cast<int32_t>(whole);
  const bool is_integer = static_cast<float>(integer) == whole;

  const double inner = magnitude == 0.0f ? -HUGE_VAL : magnitude == infinity ? HUGE_VAL : log2_of_float(magnitude);
  const double product = magnitude == 1.0f ? 0.0 : inner * static_cast<double>(y);
  double exponent = product < 200.0 ? product : 200.0;
  exponent = exponent > -200.0 ? exponent : -200.0;
  float power = static_cast<float>(exp2_double(exponent));
  const float odd = is_integer ? static_cast<float>(integer & 1) : 0.0f;
  power = odd != 0.0f ? std::copysign(power, x) : power;
  const float real = is_integer ? power : x < 0.0f ? (x > -infinity ? NAN : power) : power;
  power = x != x ? x : y != y ? y : real;
  power = x == 1.0f ? 1.0f : power;
  return y == 0.0f ? 1.0f : power;
#endif
}

template <class T>
ST_MOE_HOST_DEVICE static inline T log_of(T x) {
  if constexpr (sizeof(T) == 4) {
    return log_float(x);
  } else {
    return std::log(x);
  }
}

template <class T>
ST_MOE_HOST_DEVICE static inline T pow_of(T x, T y) {
  if constexpr (sizeof(T) == 4) {
    return pow_float(x, y);
  } else {
    return std::pow(x, y);
  }
}

}  // namespace st_moe
