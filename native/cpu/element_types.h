#pragma once
#include "core/convert.h"
#include "core/formulas.h"

namespace st_moe::cpu::ST_MOE_ISA {

#include "core/element_types.inc"

// An element that is read in place: a number, or the bits of a bf16.
template <class T>
static inline T number(T value) {
  return value;
}
static inline float number(uint16_t bits) {
  return Bf16::load(bits);
}

// Of functions of such elements.
template <class T>
constexpr Precision precision_of = std::is_same_v<T, uint16_t> ? Precision::bf16 : Precision::full;

}  // namespace st_moe::cpu::ST_MOE_ISA
