#pragma once
#include <cstddef>
#include <cstdint>

#include "core/enum.h"

namespace st_moe {

ST_MOE_ENUM(DType, f32, f64, bf16, f16, i32, int8);

// What GEMMs of f32 operands may compute with besides, no type of tensors: each operand as a sum of two bf16.
constexpr DType kBf16x3 = static_cast<DType>(kDTypeCount);

// Of an element, without the scales of blocks.
static inline constexpr size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::int8: return 1;
    case DType::f64: return 8;
    case DType::bf16:
    case DType::f16: return 2;
    default: return 4;
  }
}

static inline constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::f64: return "f64";
    case DType::bf16: return "bf16";
    case DType::f16: return "f16";
    case DType::i32: return "i32";
    case DType::int8: return "int8";
  }
  return dtype == kBf16x3 ? "bf16x3" : "unknown";
}

static inline constexpr bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64;
}

// Stored in blocks that share a scale (blocks.h): weights, which nothing else reads element by element.
static inline constexpr bool is_blocked(DType dtype) {
  return dtype == DType::int8;
}

// What a weight that is computed with as `real` may be stored as.
static inline constexpr bool is_weight(DType stored, DType real) {
  return stored == real || (real == DType::f32 && (dtype_size(stored) == 2 || is_blocked(stored)));
}

}  // namespace st_moe
