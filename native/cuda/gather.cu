#include "core/ops/layers.h"
#include "cuda/rows.cuh"
#include "cuda/scatter.cuh"

namespace st_moe::cuda {

// An entry of index [T, K, I], and where it points in [T, A, I]; −1 if outside.
struct Indexed {
  const int32_t* index;
  int64_t A, K, I;
  Stream::ErrorFlag* error_flag;

  __device__ int64_t operator()(int64_t at) const {
    const MatrixIndex place = matrix_index(at, I);
    const int32_t a = index[at];
    if (a >= 0 && a < A) return (place.row / K * A + a) * I + place.column;
    report_error(error_flag, kIndexError, a);
    return -1;
  }
};

template <class T>
struct GatherEntry {
  const T* x;
  T* y;  // zeros for an invalid index
  Indexed indexed;

  __device__ void operator()(int64_t at) const {
    const int64_t from = indexed(at);
    y[at] = from < 0 ? T{} : x[from];
  }
};

static Indexed indexed_of(const Context& ctx, const int32_t* index, int64_t A, int64_t K, int64_t I) {
  return {index, A, K, I, stream_of(ctx).error_flag()};
}

void gather(const Context& ctx, const GatherArgs& args) {
  const Indexed indexed = indexed_of(ctx, args.index, args.A, args.K, args.I);
  dispatch_size(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(ctx, args.T * args.K * args.I,
                GatherEntry<T>{static_cast<const T*>(args.x), static_cast<T*>(args.y), indexed});
  });
}

// Column i of t: a thread adds its entries in their order.
template <class T>
struct AddColumn {
  const T* dy;
  T* dx;  // zeros
  Indexed indexed;

  __device__ void operator()(int64_t column) const {
    const MatrixIndex place = matrix_index(column, indexed.I);
    for (int64_t k = 0; k < indexed.K; ++k) {
      const int64_t from = (place.row * indexed.K + k) * indexed.I + place.column, to = indexed(from);
      if (to >= 0) dx[to] += dy[from];
    }
  }
};

struct EntryKey {
  Indexed indexed;
  __device__ int32_t operator()(int64_t at) const { return static_cast<int32_t>(indexed(at)); }
};

// Many entries in few columns are sorted by where they point; else columns are enough threads.
void gather_backward(const Context& ctx, const GatherBackwardArgs& args) {
  constexpr int64_t kFewColumns = 16384, kLongColumn = 64;
  const Indexed indexed = indexed_of(ctx, args.index, args.A, args.K, args.I);
  const int64_t columns = args.T * args.I, size = columns * args.A;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* dy = static_cast<const T*>(args.dy);
    T* dx = static_cast<T*>(args.dx);
    if (columns < kFewColumns && args.K > kLongColumn && size < INT32_MAX)
      return scatter_rows(ctx, 1, columns * args.K, size, 1, EntryKey{indexed}, dy, dx);
    if (size > 0)
      check(cudaMemsetAsync(dx, 0, static_cast<size_t>(size) * sizeof(T), stream_of(ctx).stream()), "gather");
    elementwise(ctx, columns, AddColumn<T>{dy, dx, indexed});
  });
}

}  // namespace st_moe::cuda
