#include "core/unary.h"
#include "cuda/kernel.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

template <UnaryKind kind, class T>
struct Unary {
  const T* x;
  T* y;
  __device__ void operator()(int64_t i) const { y[i] = unary_value<kind>(x[i]); }
};

template <UnaryKind kind, class T>
struct UnaryGrad {
  const T *x, *dy;
  T* dx;
  __device__ void operator()(int64_t i) const { dx[i] = unary_grad<kind>(x[i], dy[i]); }
};

template <UnaryKind kind, class T>
static void map(const Context& ctx, const UnaryArgs& args) {
  elementwise(ctx, args.size, Unary<kind, T>{static_cast<const T*>(args.x), static_cast<T*>(args.y)});
}

template <UnaryKind kind, class T>
static void map(const Context& ctx, const UnaryBackwardArgs& args) {
  elementwise(
      ctx, args.size,
      UnaryGrad<kind, T>{static_cast<const T*>(args.x), static_cast<const T*>(args.dy), static_cast<T*>(args.dx)});
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

}  // namespace st_moe::cuda
