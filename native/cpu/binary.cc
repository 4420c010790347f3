#include "core/ops/elementwise.h"
#include "core/binary.h"

#include "cpu/layout.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

using BinaryLayout = Layout<3>;

// y [n], which may be a: element i depends on nothing that another iteration writes.
template <BinaryKind kind, class T>
static void apply_row(T* y, const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t n) {
  if (a_stride == 1 && b_stride == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = binary_value<kind>(a[i], b[i]);
  } else if (a_stride == 1 && b_stride == 0) {
    const T scalar = *b;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = binary_value<kind>(a[i], scalar);
  } else if (a_stride == 0 && b_stride == 1) {
    const T scalar = *a;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = binary_value<kind>(scalar, b[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = binary_value<kind>(a[i * a_stride], b[i * b_stride]);
  }
}

template <class T>
using ApplyRow = void (*)(T* y, const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t n);

// One instance for all kinds of a type.
template <class T>
static void apply_all(const Context& ctx, const BinaryArgs& args, const BinaryLayout& layout, ApplyRow<T> apply) {
  T* y = static_cast<T*>(args.y);
  const T *a = static_cast<const T*>(args.a), *b = static_cast<const T*>(args.b);
  const int last = layout.rank - 1;
  const int64_t n = last < 0 ? 1 : layout.shape[last];
  const int64_t a_stride = last < 0 ? 0 : layout.strides[1][last], b_stride = last < 0 ? 0 : layout.strides[2][last];
  int64_t rows = 1;
  for (int d = 0; d < last; ++d) rows *= layout.shape[d];
  const int64_t n_block = min_of(n, kElementBlock), n_blocks = ceil_div(n, n_block);
  const int64_t row_block = max_of<int64_t>(1, kElementBlock / n);
  parallel_for(ctx, ceil_div(rows, row_block) * n_blocks, [&](int64_t task) {
    const int64_t first = task / n_blocks * row_block, begin = task % n_blocks * n_block;
    StridedIterator<3> at(layout, max_of(last, 0), first);
    for (int64_t row = first; row < min_of(rows, first + row_block); ++row, at.next()) {
      apply(y + at.offset[0] + begin, a + at.offset[1] + begin * a_stride, a_stride,
            b + at.offset[2] + begin * b_stride, b_stride, min_of(n_block, n - begin));
    }
  });
}

void binary(const Context& ctx, const BinaryArgs& args) {
  BinaryLayout layout{};
  if (!layout_of(args, layout)) return;
  dispatch_binary(args.kind, args.dtype, [&](auto kind, auto zero) {
    using T = decltype(zero);
    apply_all<T>(ctx, args, layout, apply_row<decltype(kind)::value, T>);
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
