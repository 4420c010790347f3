#include "core/ops/layers.h"
#include "cuda/scatter.cuh"

namespace st_moe::cuda {

template <class T, int N>
struct EmbeddingRow {
  const T* w;            // [R, V, D]
  const int32_t* index;  // [tokens]
  T* y;                  // [R, tokens, D]; zeros for an invalid index
  int64_t tokens, V, D;
  Stream::ErrorFlag* error_flag;

  template <class Lanes>
  __device__ void operator()(int64_t row, Lanes lanes) const {
    const int64_t r = row / tokens;
    const int32_t v = index[row - r * tokens];
    const bool inside = v >= 0 && v < V;
    if (!inside && lanes.lane() == 0) report_error(error_flag, kIndexError, v);
    write_row<N>(y + row * D, D, lanes,
                 [&](int64_t j) { return inside ? load<N>(w + (r * V + v) * D + j) : Vector<T, N>{}; });
  }
};

void embedding(const Context& ctx, const EmbeddingArgs& args) {
  dispatch_size(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* w = static_cast<const T*>(args.w);
    T* y = static_cast<T*>(args.y);
    dispatch_width<vector_width<T>>(args.D, aligned(w, y), [&](auto n) {
      const EmbeddingRow<T, n> row{w, args.index, y, args.T, args.V, args.D, stream_of(ctx).error_flag()};
      for_rows(ctx, args.R * args.T, args.D, row);
    });
  });
}

struct TokenRow {
  const int32_t* index;  // [T]
  int64_t V;
  Stream::ErrorFlag* error_flag;

  __device__ int32_t operator()(int64_t t) const {
    const int32_t v = index[t];
    if (v >= 0 && v < V) return v;
    report_error(error_flag, kIndexError, v);
    return -1;
  }
};

void embedding_backward(const Context& ctx, const EmbeddingBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    scatter_rows(ctx, args.R, args.T, args.V, args.D, TokenRow{args.index, args.V, stream_of(ctx).error_flag()},
                 static_cast<const T*>(args.dy), static_cast<T*>(args.dw));
  });
}

}  // namespace st_moe::cuda
