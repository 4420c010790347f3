#pragma once
#include <cmath>
#include <type_traits>

#include "core/error.h"
#include "core/formulas.h"

// The functions of unary_kinds.inc, and their derivatives.
namespace st_moe {

enum class UnaryKind : int32_t {
#define UNARY(name, value, slope) name,
#include "core/unary_kinds.inc"
};
constexpr const char* kUnaryKindNames[] = {
#define UNARY(name, value, slope) #name,
#include "core/unary_kinds.inc"
};
constexpr int32_t kUnaryKindCount = sizeof kUnaryKindNames / sizeof *kUnaryKindNames;

template <UnaryKind kind, class T>
ST_MOE_HOST_DEVICE static inline T unary_value(T x) {
#define UNARY(name, value, slope) \
  if constexpr (kind == UnaryKind::name) return value;
#include "core/unary_kinds.inc"
}

template <UnaryKind kind, class T>
ST_MOE_HOST_DEVICE static inline T unary_slope(T x) {
#define UNARY(name, value, slope) \
  if constexpr (kind == UnaryKind::name) return slope;
#include "core/unary_kinds.inc"
}

// dy · f'(x); relu selects: an infinite dy is not multiplied by 0.
template <UnaryKind kind, class T>
ST_MOE_HOST_DEVICE static inline T unary_grad(T x, T dy) {
  return kind == UnaryKind::relu ? (x <= T(0) ? T(0) : dy) : dy * unary_slope<kind>(x);
}

// Calls f with the kind as a type: std::integral_constant<UnaryKind, …>.
template <class F>
static inline void dispatch_unary(UnaryKind kind, F&& f) {
  switch (kind) {
#define UNARY(name, value, slope) \
  case UnaryKind::name: return f(std::integral_constant<UnaryKind, UnaryKind::name>{});
#include "core/unary_kinds.inc"
  }
  fail(ErrorCode::option, "unknown unary operation %d", static_cast<int>(kind));
}

}  // namespace st_moe
