#include "cuda/layout.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

using BinaryLayout = Layout<3>;  // strides[0]: y, strides[1]: a, strides[2]: b

template <BinaryKind kind, class T>
__device__ static inline T apply(T a, T b) {
  if constexpr (kind == BinaryKind::add) return a + b;
  if constexpr (kind == BinaryKind::sub) return a - b;
  if constexpr (kind == BinaryKind::mul) return a * b;
  if constexpr (kind == BinaryKind::div) return a / b;
}

// y may be a: an element is read and written by one thread.
template <BinaryKind kind, class T>
struct Row {  // one dimension, or none
  T* y;
  const T *a, *b;
  int64_t a_stride, b_stride;
  __device__ void operator()(int64_t i) const { y[i] = apply<kind>(a[i * a_stride], b[i * b_stride]); }
};

template <BinaryKind kind, class T, class Index>
struct Broadcast {
  T* y;
  const T *a, *b;
  BinaryLayout layout;
  __device__ void operator()(int64_t i) const {
    int64_t offset[3];
    offsets_of(layout, static_cast<Index>(i), offset);
    y[offset[0]] = apply<kind>(a[offset[1]], b[offset[2]]);
  }
};

template <BinaryKind kind, class T>
static void apply_all(const Context& ctx, const BinaryArgs& args, const BinaryLayout& layout) {
  T* y = static_cast<T*>(args.y);
  const T *a = static_cast<const T*>(args.a), *b = static_cast<const T*>(args.b);
  const int64_t size = size_of(layout.shape, layout.rank);
  if (layout.rank <= 1) {
    const bool row = layout.rank == 1;
    return elementwise(ctx, size,
                       Row<kind, T>{y, a, b, row ? layout.strides[1][0] : 0, row ? layout.strides[2][0] : 0});
  }
  dispatch_index(size,
                 [&](auto index) { elementwise(ctx, size, Broadcast<kind, T, decltype(index)>{y, a, b, layout}); });
}

template <class T>
static void apply_kind(const Context& ctx, const BinaryArgs& args, const BinaryLayout& layout) {
  switch (args.kind) {
    case BinaryKind::add: return apply_all<BinaryKind::add, T>(ctx, args, layout);
    case BinaryKind::sub: return apply_all<BinaryKind::sub, T>(ctx, args, layout);
    case BinaryKind::mul: return apply_all<BinaryKind::mul, T>(ctx, args, layout);
    case BinaryKind::div:
      if constexpr (std::is_floating_point_v<T>) return apply_all<BinaryKind::div, T>(ctx, args, layout);
      fail(ErrorCode::dtype, "div needs f32 or f64, got i32");
  }
  fail(ErrorCode::option, "unknown binary operation %d", static_cast<int>(args.kind));
}

void binary(const Context& ctx, const BinaryArgs& args) {
  BinaryLayout layout{args.rank, {}, {}};
  int64_t y_stride = 1;
  for (int d = args.rank - 1; d >= 0; --d) {
    if (args.shape[d] == 0) return;
    layout.shape[d] = args.shape[d];
    layout.strides[0][d] = y_stride;
    layout.strides[1][d] = args.a_strides[d];
    layout.strides[2][d] = args.b_strides[d];
    y_stride *= args.shape[d];
  }
  collapse(layout);
  if (args.dtype == DType::i32) return apply_kind<uint32_t>(ctx, args, layout);  // unsigned: overflow wraps
  dispatch_float(args.dtype, [&](auto zero) { apply_kind<decltype(zero)>(ctx, args, layout); });
}

}  // namespace st_moe::cuda
