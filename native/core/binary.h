#pragma once
#include <cmath>
#include <type_traits>

#include "core/dispatch.h"
#include "core/layout.h"
#include "core/logarithm.h"
#include "core/qualifiers.h"

// The functions of binary_kinds.inc.
namespace st_moe {

enum class BinaryKind : int32_t {
#define BINARY(name, value) name,
#include "core/binary_kinds.inc"
};
constexpr const char* kBinaryKindNames[] = {
#define BINARY(name, value) #name,
#include "core/binary_kinds.inc"
};
constexpr int32_t kBinaryKindCount = sizeof kBinaryKindNames / sizeof *kBinaryKindNames;

constexpr bool is_for_floats(BinaryKind kind) {
  return kind >= BinaryKind::div;
}

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
    using T = decltype(zero);
    switch (kind) {
#define BINARY(name, value)                                                        \
  case BinaryKind::name:                                                           \
    if constexpr (std::is_floating_point_v<T> || !is_for_floats(BinaryKind::name)) \
      return f(std::integral_constant<BinaryKind, BinaryKind::name>{}, zero);      \
    fail(ErrorCode::dtype, "%s needs f32 or f64, got i32", #name);
#include "core/binary_kinds.inc"
    }
    fail(ErrorCode::option, "unknown binary operation %d", static_cast<int>(kind));
  };
  if (dtype != DType::i32) return dispatch_float(dtype, with_type);
  with_type(uint32_t{});  // overflow wraps
}

}  // namespace st_moe
