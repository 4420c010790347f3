#pragma once
#include <type_traits>

#include "core/dispatch.h"
#include "core/layout.h"
#include "core/qualifiers.h"

// The functions of binary_kinds.inc.
namespace st_moe {

template <BinaryKind kind, class T>
ST_MOE_HOST_DEVICE static inline T binary_value(T a, T b) {
#define BINARY(name, value) \
  if constexpr (kind == BinaryKind::name) return value;
#include "core/binary_kinds.inc"
}

// Calls f with the kind as a type, std::integral_constant<BinaryKind, …>, and a zero of the type that computes.
template <class F>
static inline void dispatch_binary(BinaryKind kind, DType dtype, F&& f) {
  const auto with_type = [&](auto zero) {
    switch (kind) {
#define BINARY(name, value) \
  case BinaryKind::name: return f(std::integral_constant<BinaryKind, BinaryKind::name>{}, zero);
#include "core/binary_kinds.inc"
    }
    fail(ErrorCode::option, "unknown binary operation %d", static_cast<int>(kind));
  };
  if (dtype != DType::i32) return dispatch_float(dtype, with_type);
  if (kind == BinaryKind::div) fail(ErrorCode::dtype, "div needs f32 or f64, got i32");
  with_type(uint32_t{});  // overflow wraps
}

}  // namespace st_moe
