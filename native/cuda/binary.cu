#include "core/ops/elementwise.h"
#include "core/binary.h"
#include "cuda/layout.cuh"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

using BinaryLayout = Layout<3>;

// y may be a: an element is read and written by one thread.
template <BinaryKind kind, class T>
struct Row {  // one dimension, or none
  T* y;
  const T *a, *b;
  int64_t a_stride, b_stride;

  template <int N>
  __device__ static Vector<T, N> read(const T* x, int64_t stride, int64_t i) {
    if (stride == 1) return load<N>(x + i);
    Vector<T, N> values;
    for (int c = 0; c < N; ++c) values[c] = x[(i + c) * stride];
    return values;
  }
  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    Vector<T, N> values = read<N>(a, a_stride, i);
    const Vector<T, N> others = read<N>(b, b_stride, i);
    for (int c = 0; c < N; ++c) values[c] = binary_value<kind>(values[c], others[c]);
    store(y + i, values);
  }
};

template <BinaryKind kind, class T, class Index>
struct Broadcast {
  T* y;
  const T *a, *b;
  Offsets<Index, 3> offsets;
  __device__ void operator()(int64_t i) const {
    int64_t offset[3];
    offsets.of(static_cast<Index>(i), offset);
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
    const Row<kind, T> f{y, a, b, row ? layout.strides[1][0] : 0, row ? layout.strides[2][0] : 0};
    return for_vectors<vector_width<T>>(ctx, size, aligned(y, a, b), f);
  }
  dispatch_index(size, [&](auto index) {
    elementwise(ctx, size, Broadcast<kind, T, decltype(index)>{y, a, b, Offsets<decltype(index), 3>(layout)});
  });
}

void binary(const Context& ctx, const BinaryArgs& args) {
  BinaryLayout layout{};
  if (!layout_of(args, layout)) return;
  dispatch_binary(args.kind, args.dtype,
                  [&](auto kind, auto zero) { apply_all<decltype(kind)::value, decltype(zero)>(ctx, args, layout); });
}

}  // namespace st_moe::cuda
