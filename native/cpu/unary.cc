#include "core/unary.h"
#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <UnaryKind kind, class T>
static void map(const Context& ctx, const UnaryArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) y[i] = unary_value<kind>(x[i]);
  });
}

template <UnaryKind kind, class T>
static void map(const Context& ctx, const UnaryBackwardArgs& args) {
  const T *x = static_cast<const T*>(args.x), *dy = static_cast<const T*>(args.dy);
  T* dx = static_cast<T*>(args.dx);
  parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) dx[i] = unary_grad<kind>(x[i], dy[i]);
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
