#include "core/ops/elementwise.h"
#include "core/unary.h"
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

template <class Args>
static void map_kind(const Context& ctx, const Args& args) {
  dispatch_unary(args.kind, [&](auto kind) {
    dispatch_float(args.dtype, [&](auto zero) { map<decltype(kind)::value, decltype(zero)>(ctx, args); });
  });
}

void unary(const Context& ctx, const UnaryArgs& args) {
  map_kind(ctx, args);
}

void unary_backward(const Context& ctx, const UnaryBackwardArgs& args) {
  map_kind(ctx, args);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
