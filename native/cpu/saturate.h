#pragma once
#include <cstdint>

namespace st_moe::cpu::ST_MOE_ISA {

// Towards zero, clamped to int32; NaN gives 0. Without branches, so that loops are vectorised.
static inline int32_t saturate(double value) {
  value = value == value ? value : 0.0;
  value = value > 2147483647.0 ? 2147483647.0 : value;
  value = value < -2147483648.0 ? -2147483648.0 : value;
  return static_cast<int32_t>(value);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
