#pragma once
#include <cmath>
#include <cstdint>

#include "core/qualifiers.h"

// RMSNorm of a row: y = x √D / max(r, 1e-12) · gamma with r = ‖x‖.
namespace st_moe {

constexpr double kNormFloor = 1e-12;

ST_MOE_HOST_DEVICE static inline double rms_factor(double norm, int64_t D) {
  return std::sqrt(static_cast<double>(D)) / (norm < kNormFloor ? kNormFloor : norm);
}

// The gradient dx = (u − x <x, u> / r²) / r with u = gamma √D dy; u / 1e-12 below the lower bound of r, but 0 for x =
// 0. Computed as s · dx(s x), where s is a power of two near 1 / r: <x, u> / r³ is no number of T if r is large.
template <class T>
struct RmsnormGradient {
  T scale = 1, direct, along = 0;
  bool zero;

  // inner: <x, gamma dy>
  ST_MOE_HOST_DEVICE RmsnormGradient(double norm, double inner, int64_t D)
      : direct(static_cast<T>(rms_factor(norm, D))), zero(norm == 0) {
    if (norm < kNormFloor) return;
    const int exponent = norm < 0x1p126 ? std::ilogb(norm) : 126;
    const double s = std::ldexp(1.0, -exponent), scaled = norm * s, root = std::sqrt(static_cast<double>(D));
    scale = static_cast<T>(s), direct = static_cast<T>(root / scaled);
    along = static_cast<T>(root * inner * s / scaled / scaled / scaled);
  }
  ST_MOE_HOST_DEVICE T of(T gamma, T dy, T x) const {
    return zero ? T(0) : scale * (direct * gamma * dy - along * (scale * x));
  }
};

}  // namespace st_moe
