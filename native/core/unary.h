#pragma once
#include <cmath>

#include "core/backend.h"
#include "core/formulas.h"

// The functions behind UnaryKind, and their derivatives.
namespace st_moe {

template <UnaryKind kind, class T>
ST_MOE_HOST_DEVICE static inline T unary_value(T x) {
  if constexpr (kind == UnaryKind::neg) return -x;
  if constexpr (kind == UnaryKind::exp) return exp_of(x);
  if constexpr (kind == UnaryKind::log) return std::log(x);
  if constexpr (kind == UnaryKind::sqrt) return std::sqrt(x);
  if constexpr (kind == UnaryKind::abs) return std::fabs(x);
  if constexpr (kind == UnaryKind::square) return x * x;
  if constexpr (kind == UnaryKind::relu) return relu(x);
  if constexpr (kind == UnaryKind::gelu) return gelu(x);
  if constexpr (kind == UnaryKind::silu) return silu(x);
  if constexpr (kind == UnaryKind::sigmoid) return sigmoid(x);
  if constexpr (kind == UnaryKind::tanh) return tanh_of(x);
}

// f'(x); relu and abs have 0 at 0.
template <UnaryKind kind, class T>
ST_MOE_HOST_DEVICE static inline T unary_slope(T x) {
  if constexpr (kind == UnaryKind::neg) return T(-1);
  if constexpr (kind == UnaryKind::exp) return exp_of(x);
  if constexpr (kind == UnaryKind::log) return T(1) / x;
  if constexpr (kind == UnaryKind::sqrt) return T(0.5) / std::sqrt(x);
  if constexpr (kind == UnaryKind::abs) return x > T(0) ? T(1) : x < T(0) ? T(-1) : x == T(0) ? T(0) : x;
  if constexpr (kind == UnaryKind::square) return T(2) * x;
  if constexpr (kind == UnaryKind::relu) return relu_grad(x);
  if constexpr (kind == UnaryKind::gelu) return gelu_grad(x);
  if constexpr (kind == UnaryKind::silu) return silu_grad(x);
  if constexpr (kind == UnaryKind::sigmoid) return sigmoid_grad(x);
  if constexpr (kind == UnaryKind::tanh) {
    const T y = tanh_of(x);
    return T(1) - y * y;
  }
}

// dy · f'(x); relu selects: an infinite dy is not multiplied by 0.
template <UnaryKind kind, class T>
ST_MOE_HOST_DEVICE static inline T unary_grad(T x, T dy) {
  return kind == UnaryKind::relu ? (x <= T(0) ? T(0) : dy) : dy * unary_slope<kind>(x);
}

}  // namespace st_moe
