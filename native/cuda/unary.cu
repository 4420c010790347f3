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

}  // namespace st_moe::cuda
