#include "core/binary.h"
#include "cuda/layout.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

using BinaryLayout = Layout<3>;

// y may be a: an element is read and written by one thread.
template <BinaryKind kind, class T>
struct Row {  // one dimension, or none
  T* y;
  const T *a, *b;
  int64_t a_stride, b_stride;
  __device__ void operator()(int64_t i) const { y[i] = binary_value<kind>(a[i * a_stride], b[i * b_stride]); }
};

template <BinaryKind kind, class T, class Index>
struct Broadcast {
  T* y;
  const T *a, *b;
  BinaryLayout layout;
  __device__ void operator()(int64_t i) const {
    int64_t offset[3];
    offsets_of(layout, static_cast<Index>(i), offset);
    y[offset[0]] = binary_value<kind>(a[offset[1]], b[offset[2]]);
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

void binary(const Context& ctx, const BinaryArgs& args) {
  BinaryLayout layout{};
  if (!layout_of(args, layout)) return;
  dispatch_binary(args.kind, args.dtype,
                  [&](auto kind, auto zero) { apply_all<decltype(kind)::value, decltype(zero)>(ctx, args, layout); });
}

}  // namespace st_moe::cuda
