#pragma once
#include <cmath>
#include <cstdint>

#include "core/qualifiers.h"

namespace st_moe {

// Element i stays, divided by 1 − p, if uniform24(word i) ≥ p, else it is 0.
template <class T>
struct DropoutNumbers {
  T factor;
  uint32_t threshold;  // word >> 8 ≥ p · 2^24, in integers

  static DropoutNumbers of(double p) {
    return {static_cast<T>(1.0 / (1.0 - p)), static_cast<uint32_t>(std::ceil(p * 0x1p24))};
  }
  ST_MOE_HOST_DEVICE bool keeps(uint32_t word) const { return word >> 8 >= threshold; }
  ST_MOE_HOST_DEVICE T apply(T x, bool kept) const {
    const T scaled = x * factor;  // outside the selection, else a loop has a branch
    return kept ? scaled : T(0);
  }
  ST_MOE_HOST_DEVICE T operator()(T x, uint32_t word) const { return apply(x, keeps(word)); }
};

}  // namespace st_moe
