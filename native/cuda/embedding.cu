#include <cstdint>

#include "cuda/ops.h"
#include "cuda/row_group.cuh"
#include "cuda/sort.cuh"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

template <class T, int N>
struct EmbeddingRow {
  const T* w;            // [V, D]
  const int32_t* index;  // [T]
  T* y;                  // [T, D]; zeros for an invalid index
  int64_t D, V;
  Stream::ErrorFlag* error_flag;

  template <class Group>
  __device__ void operator()(int64_t t, Group group) const {
    const int32_t v = index[t];
    const bool inside = v >= 0 && v < V;
    if (!inside && group.lane() == 0) report_error(error_flag, kIndexError, v);
    for (int64_t j = group.lane() * N; j < D; j += Group::size * N)
      store(y + t * D + j, inside ? load<N>(w + v * D + j) : Vector<T, N>{});
  }
};

void embedding(const Context& ctx, const EmbeddingArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* w = static_cast<const T*>(args.w);
    T* y = static_cast<T*>(args.y);
    dispatch_width<vector_width<T>>(args.D, aligned(w, y), [&](auto n) {
      for_rows(ctx, args.T, args.D, EmbeddingRow<T, n>{w, args.index, y, args.D, args.V, stream_of(ctx).error_flag()});
    });
  });
}

// The key of a token is its index; invalid ones are last and belong to no row.
struct TokenKey {
  const int32_t* index;  // [T]
  int32_t* keys;         // [T]
  int64_t* order;        // [T]
  int64_t V;
  int32_t fault_key;
  Stream::ErrorFlag* error_flag;

  __device__ void operator()(int64_t t) const {
    const int32_t v = index[t];
    const bool inside = v >= 0 && v < V;
    if (!inside) report_error(error_flag, kIndexError, v);
    keys[t] = inside ? v : fault_key;
    order[t] = t;
  }
};

__device__ static inline int64_t lower_bound(const int32_t* keys, int64_t count, int64_t key) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Row v of dw, in token order.
template <class T, int N>
struct EmbeddingBackwardRow {
  const T* dy;           // [T, D]
  const int32_t* keys;   // [T], sorted
  const int64_t* order;  // [T]: the token of each key
  T* dw;                 // [V, D]
  int64_t tokens, D;

  template <class Group>
  __device__ void operator()(int64_t v, Group group) const {
    const int64_t begin = lower_bound(keys, tokens, v), end = lower_bound(keys, tokens, v + 1);
    for (int64_t j = group.lane() * N; j < D; j += Group::size * N) {
      Vector<T, N> sum{};
#pragma unroll 8
      for (int64_t i = begin; i < end; ++i) {
        const Vector<T, N> term = load<N>(dy + order[i] * D + j);
        for (int c = 0; c < N; ++c) sum[c] += term[c];
      }
      store(dw + v * D + j, sum);
    }
  }
};

template <class T>
static void add_tokens(const Context& ctx, const EmbeddingBackwardArgs& args) {
  constexpr int64_t warp_width = 64;  // frequent tokens need long sums: few columns per thread
  const Scratch<int32_t> keys(ctx, 2 * args.T);
  const Scratch<int64_t> order(ctx, 2 * args.T);
  const int32_t fault_key = args.V < INT32_MAX ? static_cast<int32_t>(args.V) : INT32_MAX;
  elementwise(ctx, args.T,
              TokenKey{args.index, keys.get(), order.get(), args.V, fault_key, stream_of(ctx).error_flag()});
  if (args.V == 0 || args.D == 0) return;
  const int64_t half = sort_by_key(ctx, args.T, int64_t{fault_key} + 1, keys.get(), order.get()) * args.T;
  const T* dy = static_cast<const T*>(args.dy);
  T* dw = static_cast<T*>(args.dw);
  dispatch_width<vector_width<T>>(args.D, aligned(dy, dw), [&](auto n) {
    const EmbeddingBackwardRow<T, n> row{dy, keys.get() + half, order.get() + half, dw, args.T, args.D};
    for_rows(ctx, args.V, args.D, row, warp_width * n);
  });
}

void embedding_backward(const Context& ctx, const EmbeddingBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { add_tokens<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
