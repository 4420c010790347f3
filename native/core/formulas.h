#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/logarithm.h"
#include "core/qualifiers.h"

// Scalar formulas shared by the backends. Double precision uses the C library. The float32 versions do not, so their
// bits are the same on every system; they have no branches and no calls, so a plain loop over them is vectorized.
// Limits at ±inf are correct, and NaN stays NaN: a clamp is written `x > limit ? limit : x`, or `limit < x ? limit :
// x`, which a NaN passes through.
namespace st_moe {

// How exact a function is: to a few units in the last place of its type, or so that its result can be rounded to bf16,
// half a unit of which is 3.9e-3 of the value.
enum class Precision { full, bf16 };

// x = n·ln 2 + r with |r| ≤ ln 2 / 2, and e^r by a minimax polynomial of degree 6 (relative error 3.1e-9).
struct ExpParts {
  float power;   // e^r
  int32_t bits;  // whose lowest nine are those of n
};

ST_MOE_HOST_DEVICE static inline ExpParts exp_parts(float x) {
  const float magic = 0x1.8p23f;  // the sum's low bits hold n, rounded to nearest
  const float shifted = x * 0x1.715476p0f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0x1.62e400p-1f) - n * 0x1.7f7d1cp-20f;  // n · the high part of ln 2 is exact
  float p = 1.3814611e-3f;
  p = p * r + 8.3687100e-3f;
  p = p * r + 4.1668387e-2f;
  p = p * r + 1.6666521e-1f;
  p = p * r + 4.9999993e-1f;
  ExpParts parts;
  parts.power = p * (r * r) + r + 1.0f;
  std::memcpy(&parts.bits, &shifted, 4);
  return parts;
}

// e^x in float32: within 1 ulp if the result is normal; subnormal results are rounded twice.
ST_MOE_HOST_DEVICE static inline float exp_float(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const ExpParts parts = exp_parts(x);
  // 2^n in two factors: n reaches 128 and −150, beyond the exponents of one float.
  const int32_t exponent = parts.bits - 0x4b400000, half = exponent >> 1;
  const int32_t first_bits = (half + 127) << 23, second_bits = (exponent - half + 127) << 23;
  float first, second;
  std::memcpy(&first, &first_bits, 4);
  std::memcpy(&second, &second_bits, 4);
  return parts.power * first * second;
#endif
}

// The same for −200 ≤ x ≤ 0, in fewer steps: n goes straight into the exponent. 0 where e^x < 2^−122.
ST_MOE_HOST_DEVICE static inline float exp_of_negative(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  const ExpParts parts = exp_parts(x);
  uint32_t bits;
  std::memcpy(&bits, &parts.power, 4);
  bits += static_cast<uint32_t>(parts.bits) << 23;
  float e;
  std::memcpy(&e, &bits, 4);
  return x < -84.5f ? 0.0f : e;
#endif
}

// 2^x for −382 ≤ x ≤ 127, within 7.5e-5 of its value: 2^n times a minimax polynomial of degree 3. A result below 2^−126
// is less than that, and 0 for x ≤ −128.
ST_MOE_HOST_DEVICE static inline float exp2_bf16(float x) {
  const float magic = 0x1.8p23f, shifted = x + magic, r = x - (shifted - magic);
  float power = 5.517101e-2f;
  power = power * r + 2.426112e-1f;
  power = power * r + 6.9326108e-1f;
  power = power * r + 9.9992807e-1f;
  uint32_t bits, n;
  std::memcpy(&bits, &power, 4);
  std::memcpy(&n, &shifted, 4);
  const int32_t sum = static_cast<int32_t>(bits + (n << 23)), positive = sum < 0 ? 0 : sum;
  std::memcpy(&power, &positive, 4);
  return power;
}

template <class T>
ST_MOE_HOST_DEVICE static inline T exp_of(T x) {
  if constexpr (sizeof(T) == 4) {
    return exp_float(x);
  } else {
    return std::exp(x);
  }
}

// tanh in float32: within 2 ulp.
ST_MOE_HOST_DEVICE static inline float tanh_float(float x) {
  const float magnitude = std::fabs(x), square = x * x;
  float p = -5.7047579e-3f;  // x + x³ P(x²) on |x| < 0.625, where 1 − e would cancel; relative error 4.4e-9
  p = p * square + 2.0638894e-2f;
  p = p * square - 5.3739659e-2f;
  p = p * square + 1.3331442e-1f;
  p = p * square - 3.3333282e-1f;
  const float near_zero = magnitude + magnitude * square * p;
  const float e = exp_float(-2.0f * magnitude);
  const float away = (1.0f - e) / (1.0f + e);
  return std::copysign(magnitude < 0.625f ? near_zero : away, x);
}

template <class T>
ST_MOE_HOST_DEVICE static inline T tanh_of(T x) {
  if constexpr (sizeof(T) == 4) {
    return tanh_float(x);
  } else {
    return std::tanh(x);
  }
}

template <class T>
ST_MOE_HOST_DEVICE static inline T sigmoid(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

template <class T>
ST_MOE_HOST_DEVICE static inline T sigmoid_grad(T x) {
  const T e = exp_of(-std::fabs(x)), s = T(1) / (T(1) + e);  // even in x; no cancellation in 1 − s
  return e * s * s;
}

// A function and its derivative at one point, with one exponential.
template <class T>
struct ValueAndSlope {
  T value, slope;
};

template <Precision precision = Precision::full, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> sigmoid_with_slope(T x) {
  T e;
  if constexpr (precision == Precision::bf16)
    e = exp2_bf16(-1.44269504f * std::fabs(x));
  else
    e = exp_of(-std::fabs(x));
  const T above = T(1) / (T(1) + e), below = e * above;
  return {x > T(0) ? above : below, below * above};
}

// log(1 + e^x), whose slope is sigmoid(x). A NaN stays NaN.
template <class T>
ST_MOE_HOST_DEVICE static inline T softplus(T x) {
  const T e = exp_of(-std::fabs(x)), positive = x < T(0) ? T(0) : x;
  if constexpr (sizeof(T) == 4) {
    return positive + log1p_of_fraction(e);
  } else {
    return positive + std::log1p(e);
  }
}

// Of pair i of token n: n · base^(−2i/d) (Su et al., arXiv 2104.09864, §3.2.2). In double for every dtype.
ST_MOE_HOST_DEVICE static inline double rotary_angle(int64_t n, int64_t i, int64_t d, double base) {
  return static_cast<double>(n) * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(d));
}

// x · sigmoid(x). The clamps yield the limits at ±inf instead of inf · 0.
template <class T>
ST_MOE_HOST_DEVICE static inline T silu(T x) {
  constexpr T limit = sizeof(T) == 4 ? T(110) : T(760);
  return (x < -limit ? -limit : x) * sigmoid(x);
}

template <class T>
ST_MOE_HOST_DEVICE static inline T silu_grad(T x) {
  constexpr T limit = sizeof(T) == 4 ? T(110) : T(760);
  T clamped = x > limit ? limit : x;
  clamped = clamped < -limit ? -limit : clamped;
  return sigmoid(clamped) + clamped * sigmoid_grad(clamped);
}

// The normal distribution at −t, t = |z| clamped to the point where all is 0, so that t · tail has its limit 0.
template <class T>
struct NormalTail {
  T t, tail, slope;  // Φ(−t), and the slope of z Φ(z) at −t: Φ(−t) − t φ(t)
};

// Float32: Φ(−t) = e^(−t²/2) · P(t) / Q(t), a minimax fit whose absolute error is 7e-12 and whose relative error is
// 2.5e-6 or less on [0, 14.5]; all coefficients are positive. Rounding included, gelu is within 1.3e-7 |z| and
// gelu_grad within 1.5e-7 (measured on [-15, 15]).
// For bf16: Φ(−t) = 2^P(t) and its slope Φ(−t) · M(t). log Φ is so smooth that this takes no division and one power.
// gelu is within 1.3e-4 of its value for z ≥ −6, gelu_grad within 8e-5.
template <Precision precision = Precision::full, class T>
ST_MOE_HOST_DEVICE static inline NormalTail<T> normal_tail(T z) {
  constexpr T inverse_sqrt_2pi = T(0.39894228040143267794), inverse_sqrt_2 = T(0.70710678118654752440);
  constexpr T limit = sizeof(T) == 4 ? T(14.5) : T(40);
  T t = std::fabs(z);
  t = limit < t ? limit : t;
  if constexpr (precision == Precision::bf16) {
    float p = 2.299005e-5f, m = -6.7388317e-4f;
    p = p * t - 6.1110056e-4f;
    m = m * t + 1.4736465e-2f;
    p = p * t + 7.195575e-3f;
    m = m * t - 9.9590674e-2f;
    p = p * t - 5.1185391e-2f;
    m = m * t - 6.4288087e-1f;
    p = p * t - 4.6127179e-1f;
    m = m * t - 7.9658502e-1f;
    p = p * t - 1.1501744f;
    m = m * t + 9.9996079e-1f;
    p = p * t - 1.0000648f;
    const T tail = exp2_bf16(p);
    return {t, tail, tail * m};
  } else if constexpr (sizeof(T) == 4) {
    const float e = exp_of_negative(-0.5f * t * t);
    float p = 2.5627811e-3f, q = 6.4227839e-3f;
    p = p * t + 2.9426174e-2f;
    q = q * t + 7.3801394e-2f;
    p = p * t + 1.4856631e-1f;
    q = q * t + 3.7819696e-1f;
    p = p * t + 3.8881927e-1f;
    q = q * t + 1.0542181f;
    p = p * t + 0.5f;
    q = q * t + 1.5755231f;
    q = q * t + 1.0f;
    const float ratio = p / q;
    return {t, e * ratio, e * (ratio - t * inverse_sqrt_2pi)};
  } else {
    const T tail = T(0.5) * std::erfc(t * inverse_sqrt_2);
    const T density = inverse_sqrt_2pi * std::exp(T(-0.5) * t * t);
    return {t, tail, tail - t * density};
  }
}

template <class T>
ST_MOE_HOST_DEVICE static inline T gelu_from(T z, const NormalTail<T>& normal) {
  return (T(0) > z ? T(0) : z) - normal.t * normal.tail;
}

template <class T>
ST_MOE_HOST_DEVICE static inline T gelu_grad_from(T z, const NormalTail<T>& normal) {
  return z > T(0) ? T(1) - normal.slope : normal.slope;
}

// z Φ(z), the exact (erf) form.
template <class T>
ST_MOE_HOST_DEVICE static inline T gelu(T z) {
  return gelu_from(z, normal_tail(z));
}

// Φ(z) + z φ(z)
template <class T>
ST_MOE_HOST_DEVICE static inline T gelu_grad(T z) {
  return gelu_grad_from(z, normal_tail(z));
}

template <Precision precision = Precision::full, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> gelu_with_slope(T z) {
  const NormalTail<T> normal = normal_tail<precision>(z);
  return {gelu_from(z, normal), gelu_grad_from(z, normal)};
}

// z · sigmoid(2u), 2u = 2 √(2/π) (z + 0.044715 z³): the tanh form of GELU. Beyond the limits sigmoid is 0 or 1.
template <Precision precision = Precision::full, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> gelu_tanh_with_slope(T z) {
  constexpr T factor = T(1.59576912160573071176), cubic = T(0.044715), limit = sizeof(T) == 4 ? T(15) : T(30);
  const T above = z < -limit ? -limit : z, clamped = above > limit ? limit : above, square = clamped * clamped;
  const ValueAndSlope<T> s = sigmoid_with_slope<precision>(factor * clamped * (T(1) + cubic * square));
  return {above * s.value, s.value + clamped * s.slope * factor * (T(1) + T(3) * cubic * square)};
}

template <Precision precision = Precision::full, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> silu_with_slope(T z) {
  constexpr T limit = sizeof(T) == 4 ? T(110) : T(760);
  const T above = z < -limit ? -limit : z, clamped = above > limit ? limit : above;
  const ValueAndSlope<T> s = sigmoid_with_slope<precision>(clamped);
  return {above * s.value, s.value + clamped * s.slope};
}

// z' sigmoid(alpha z') with z' = min(z, limit); at z = limit the slope is that from the left.
template <Precision precision = Precision::full, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> clamped_silu_with_slope(T z, T limit, T alpha) {
  const ValueAndSlope<T> f = silu_with_slope<precision>(alpha * (z > limit ? limit : z));
  return {f.value / alpha, z > limit ? T(0) : f.slope};
}

template <class T>
ST_MOE_HOST_DEVICE static inline T relu(T z) {
  return z < T(0) ? T(0) : z;
}

// The slope at 0 is 0.
template <class T>
ST_MOE_HOST_DEVICE static inline T relu_grad(T z) {
  return z > T(0) ? T(1) : T(0);
}

// Whether a second or later expert is used, for u uniform on [0, 1): with probability gate / max(threshold, floor).
template <class T>
ST_MOE_HOST_DEVICE static inline bool routed(T u, T gate, T threshold, T floor) {
  return u < gate / (threshold < floor ? floor : threshold);
}

// Uniform on [0, 1) to Gumbel noise.
template <class T>
ST_MOE_HOST_DEVICE static inline T gumbel(T u) {
  const T floor = T(1e-20);
  const T inner = -log_of(u < floor ? floor : u);
  return -log_of(inner < floor ? floor : inner);
}

}  // namespace st_moe
