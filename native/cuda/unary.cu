#include "core/ops/elementwise.h"
#include "core/unary.h"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

template <UnaryKind kind, class T>
struct Unary {
  const T* x;
  T* y;
  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    Vector<T, N> values = load<N>(x + i);
    for (int c = 0; c < N; ++c) values[c] = unary_value<kind>(values[c]);
    store(y + i, values);
  }
};

template <UnaryKind kind, class T>
struct UnaryGrad {
  const T *x, *dy;
  T* dx;
  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    const Vector<T, N> values = load<N>(x + i);
    Vector<T, N> gradient = load<N>(dy + i);
    for (int c = 0; c < N; ++c) gradient[c] = unary_grad<kind>(values[c], gradient[c]);
    store(dx + i, gradient);
  }
};

template <UnaryKind kind, class T>
static void map(const Context& ctx, const UnaryArgs& args) {
  const Unary<kind, T> f{static_cast<const T*>(args.x), static_cast<T*>(args.y)};
  for_vectors<vector_width<T>>(ctx, args.size, aligned(f.x, f.y), f);
}

template <UnaryKind kind, class T>
static void map(const Context& ctx, const UnaryBackwardArgs& args) {
  const UnaryGrad<kind, T> f{static_cast<const T*>(args.x), static_cast<const T*>(args.dy), static_cast<T*>(args.dx)};
  for_vectors<vector_width<T>>(ctx, args.size, aligned(f.x, f.dy, f.dx), f);
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
