#include <cmath>

#include "core/formulas.h"
#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <UnaryKind kind, class T>
static inline T value_of(T x) {
  if constexpr (kind == UnaryKind::neg) return -x;
  if constexpr (kind == UnaryKind::exp) return exp_of(x);
  if constexpr (kind == UnaryKind::log) return std::log(x);
  if constexpr (kind == UnaryKind::sqrt) return std::sqrt(x);
  if constexpr (kind == UnaryKind::abs) return std::fabs(x);
  if constexpr (kind == UnaryKind::square) return x * x;
  if constexpr (kind == UnaryKind::relu) return x < T(0) ? T(0) : x;
  if constexpr (kind == UnaryKind::gelu) return gelu(x);
  if constexpr (kind == UnaryKind::silu) return silu(x);
  if constexpr (kind == UnaryKind::sigmoid) return sigmoid(x);
  if constexpr (kind == UnaryKind::tanh) return tanh_of(x);
}

// f'(x); relu and abs have 0 at 0.
template <UnaryKind kind, class T>
static inline T slope_of(T x) {
  if constexpr (kind == UnaryKind::neg) return T(-1);
  if constexpr (kind == UnaryKind::exp) return exp_of(x);
  if constexpr (kind == UnaryKind::log) return T(1) / x;
  if constexpr (kind == UnaryKind::sqrt) return T(0.5) / std::sqrt(x);
  if constexpr (kind == UnaryKind::abs) return x > T(0) ? T(1) : x < T(0) ? T(-1) : x == T(0) ? T(0) : x;
  if constexpr (kind == UnaryKind::square) return T(2) * x;
  if constexpr (kind == UnaryKind::relu) return x > T(0) ? T(1) : T(0);
  if constexpr (kind == UnaryKind::gelu) return gelu_grad(x);
  if constexpr (kind == UnaryKind::silu) return silu_grad(x);
  if constexpr (kind == UnaryKind::sigmoid) return sigmoid_grad(x);
  if constexpr (kind == UnaryKind::tanh) {
    const T y = tanh_of(x);
    return T(1) - y * y;
  }
}

template <UnaryKind kind, class T>
static void map(const Context& ctx, const UnaryArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) y[i] = value_of<kind>(x[i]);
  });
}

template <UnaryKind kind, class T>
static void map(const Context& ctx, const UnaryBackwardArgs& args) {
  const T *x = static_cast<const T*>(args.x), *dy = static_cast<const T*>(args.dy);
  T* dx = static_cast<T*>(args.dx);
  parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) {
      // relu selects: an infinite dy is not multiplied by 0.
      dx[i] = kind == UnaryKind::relu ? (x[i] <= T(0) ? T(0) : dy[i]) : dy[i] * slope_of<kind>(x[i]);
    }
  });
}

template <class T, class Args>
static void map_kind(const Context& ctx, const Args& args) {
  switch (args.kind) {
    case UnaryKind::neg: return map<UnaryKind::neg, T>(ctx, args);
    case UnaryKind::exp: return map<UnaryKind::exp, T>(ctx, args);
    case UnaryKind::log: return map<UnaryKind::log, T>(ctx, args);
    case UnaryKind::sqrt: return map<UnaryKind::sqrt, T>(ctx, args);
    case UnaryKind::abs: return map<UnaryKind::abs, T>(ctx, args);
    case UnaryKind::square: return map<UnaryKind::square, T>(ctx, args);
    case UnaryKind::relu: return map<UnaryKind::relu, T>(ctx, args);
    case UnaryKind::gelu: return map<UnaryKind::gelu, T>(ctx, args);
    case UnaryKind::silu: return map<UnaryKind::silu, T>(ctx, args);
    case UnaryKind::sigmoid: return map<UnaryKind::sigmoid, T>(ctx, args);
    case UnaryKind::tanh: return map<UnaryKind::tanh, T>(ctx, args);
  }
  fail(ErrorCode::option, "unknown unary operation %d", static_cast<int>(args.kind));
}

void unary(const Context& ctx, const UnaryArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { map_kind<decltype(zero)>(ctx, args); });
}

void unary_backward(const Context& ctx, const UnaryBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { map_kind<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
