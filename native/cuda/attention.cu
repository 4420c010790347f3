#include <cmath>

#include "cuda/attention_tile.cuh"
#include "cuda/ops.h"
#include "cuda/row_group.cuh"

// Tiles of scores with a running maximum and sum; no matrix of all scores. The backward recomputes the probabilities
// from lse: one kernel over query tiles for dq, one over key tiles for dk and dv, so that every sum has one owner and a
// fixed order. A block computes up to 128 columns of a head's output; larger heads use more blocks, which recompute the
// scores.
namespace st_moe::cuda {

template <class Args>
static AttentionShape shape_of(const Args& args) {
  const bool causal = args.causal != 0;
  if (causal && args.Nk < args.Nq) {
    fail(ErrorCode::shape, "causal attention needs at least as many keys as queries, got %lld keys and %lld queries",
         static_cast<long long>(args.Nk), static_cast<long long>(args.Nq));
  }
  return {args.B,    args.Nq, args.Nk, args.heads, args.kv_heads, args.d, args.heads * args.d, args.kv_heads * args.d,
          args.mask, causal};
}

template <class T, int kSlices>
__global__ void __launch_bounds__(kBlock)
    attention_kernel(AttentionShape shape, TaskGrid grid, T factor, const T* q, const T* k, const T* v, T* y, T* lse) {
  constexpr int M = Tile<T>::micro, size = Tile<T>::size;
  __shared__ TileMemory<T> memory;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  for (int64_t i = blockIdx.x; i < grid.count(); i += gridDim.x) {
    const TileTask task = grid.task(i, size, TileSums<T, kSlices>::columns);
    const HeadRows<T> queries = shape.queries(q, task.head).from(task.first_row);
    const int64_t b = task.head / shape.heads, kv_head = shape.kv_head(task.head);
    const int64_t last_row = (task.first_row + size < shape.Nq ? task.first_row + size : shape.Nq) - 1;
    TileSums<T, kSlices> sums;
    sums.clear();
    T largest[M], total[M];
    for (int r = 0; r < M; ++r) largest[r] = -static_cast<T>(INFINITY), total[r] = 0;
    for (int64_t first_key = 0; first_key < shape.seen(last_row); first_key += size) {
      Visible visible[M];
      const bool whole = KeysSeen{task.first_row, first_key}.rows(shape, size, visible);
      T s[M][M];
      tile_products(queries, shape.keys(k, kv_head).from(first_key), memory, s);
      bool shown[M];
      for (int c = 0; c < M; ++c) shown[c] = shape.shows(b, first_key + tx + c * kSide);
      T rescale[M];
      for (int r = 0; r < M; ++r) {
        T most = largest[r];
        for (int c = 0; c < M; ++c) {
          s[r][c] *= factor;
          if (tx + c * kSide < visible[r].end && shown[c]) most = Max{}(most, s[r][c]);
        }
        most = reduce_row(most, Max{});
        const T shift = most == -static_cast<T>(INFINITY) ? T(0) : most;  // only −inf so far: e^−inf, not e^NaN
        rescale[r] = exp_of(largest[r] - shift);
        T sum = 0;
        for (int c = 0; c < M; ++c) {
          const T p = tx + c * kSide < visible[r].end && shown[c] ? exp_of(s[r][c] - shift) : T(0);
          memory.scores[ty * M + r][tx + c * kSide] = p;
          sum += p;
        }
        total[r] = total[r] * rescale[r] + reduce_row(sum, Sum{});
        largest[r] = most;
      }
      sums.scale(rescale);
      sums.add(memory, shape.keys(v, kv_head).from(first_key), task.first_column, visible, whole);
    }
    T inverse[M];
    for (int r = 0; r < M; ++r) {
      const int64_t query = task.first_row + ty * M + r;
      const bool sees = shape.Nk > 0 && !(shape.mask && total[r] == 0);
      if (sees && largest[r] == -static_cast<T>(INFINITY)) total[r] = static_cast<T>(NAN);
      inverse[r] = sees ? T(1) / total[r] : T(0);
      if (tx == 0 && task.first_column == 0 && query < shape.Nq)
        lse[task.head * shape.Nq + query] = shape.Nk > 0 ? largest[r] + std::log(total[r]) : largest[r];
    }
    sums.scale(inverse);
    sums.store(y + shape.query_offset(task.head) + task.first_row * shape.width, shape.width, queries.count,
               task.first_column, shape.d);
  }
}

template <class T, int kSlices>
static void attention_forward(const Context& ctx, const AttentionArgs& args) {
  const AttentionShape shape = shape_of(args);
  const TaskGrid grid = grid_of<T, kSlices>(shape, shape.heads, shape.Nq);
  if (grid.count() == 0) return;
  launch(ctx, attention_kernel<T, kSlices>, grid_for(grid.count(), 1), kBlock, 0, shape, grid,
         static_cast<T>(args.scale), static_cast<const T*>(args.q), static_cast<const T*>(args.k),
         static_cast<const T*>(args.v), static_cast<T*>(args.y), static_cast<T*>(args.lse));
}

// Calls f with the number of slices of a head per block.
template <class F>
static void dispatch_width(int64_t d, F&& f) {
  if (d <= 2 * kSlice) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 4>{});
}

void attention(const Context& ctx, const AttentionArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    dispatch_width(args.d, [&](auto slices) { attention_forward<decltype(zero), slices.value>(ctx, args); });
  });
}

template <class T>
struct AttentionInputs {
  const T *dy, *q, *k, *v, *lse;
  T* delta;  // [B, heads, Nq]: <dy, y>, which dq writes and dkv reads
  T factor;
};

// <dy, y> of a query by the kSide threads that have its row; all of them get it. `row`: of the tile.
template <class T>
__device__ static inline T row_product(const HeadRows<T>& dy, const HeadRows<T>& y, int64_t row) {
  double sum = 0;
  for (int64_t j = threadIdx.x % kSide; row < dy.count && j < dy.d; j += kSide)
    sum += static_cast<double>(dy.data[row * dy.stride + j]) * static_cast<double>(y.data[row * y.stride + j]);
  return static_cast<T>(reduce_row(sum, Sum{}));
}

template <class T, int kSlices>
__global__ void __launch_bounds__(kBlock)
    attention_dq_kernel(AttentionShape shape, TaskGrid grid, AttentionInputs<T> in, const T* y, T* dq) {
  constexpr int M = Tile<T>::micro, size = Tile<T>::size;
  __shared__ TileMemory<T> memory;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  for (int64_t i = blockIdx.x; i < grid.count(); i += gridDim.x) {
    const TileTask task = grid.task(i, size, TileSums<T, kSlices>::columns);
    const HeadRows<T> queries = shape.queries(in.q, task.head).from(task.first_row);
    const HeadRows<T> gradients = shape.queries(in.dy, task.head).from(task.first_row);
    const HeadRows<T> outputs = shape.queries(y, task.head).from(task.first_row);
    const int64_t b = task.head / shape.heads, kv_head = shape.kv_head(task.head);
    const int64_t last_row = (task.first_row + size < shape.Nq ? task.first_row + size : shape.Nq) - 1;
    T lse[M], delta[M];
    for (int r = 0; r < M; ++r) {
      const int64_t query = task.first_row + ty * M + r, at = task.head * shape.Nq + query;
      lse[r] = query < shape.Nq ? in.lse[at] : T(0);
      delta[r] = row_product(gradients, outputs, ty * M + r);
      if (tx == 0 && task.first_column == 0 && query < shape.Nq) in.delta[at] = delta[r];
    }
    TileSums<T, kSlices> sums;
    sums.clear();
    for (int64_t first_key = 0; first_key < shape.seen(last_row); first_key += size) {
      Visible visible[M];
      const bool whole = KeysSeen{task.first_row, first_key}.rows(shape, size, visible);
      T s[M][M], dp[M][M];
      const HeadRows<T> keys = shape.keys(in.k, kv_head).from(first_key);
      tile_products(queries, keys, memory, s);
      tile_products(gradients, shape.keys(in.v, kv_head).from(first_key), memory, dp);
      bool shown[M];
      for (int c = 0; c < M; ++c) shown[c] = shape.shows(b, first_key + tx + c * kSide);
      for (int r = 0; r < M; ++r)
        for (int c = 0; c < M; ++c) {
          const bool sees = tx + c * kSide < visible[r].end && shown[c];
          const T ds = exp_of(s[r][c] * in.factor - lse[r]) * (dp[r][c] - delta[r]) * in.factor;
          memory.scores[ty * M + r][tx + c * kSide] = sees ? ds : T(0);
        }
      sums.add(memory, keys, task.first_column, visible, whole);
    }
    sums.store(dq + shape.query_offset(task.head) + task.first_row * shape.width, shape.width, queries.count,
               task.first_column, shape.d);
  }
}

// The tile is transposed: its rows are keys, its columns queries, of one head after another of those that share the
// keys.
template <class T, int kSlices>
__global__ void __launch_bounds__(kBlock)
    attention_dkv_kernel(AttentionShape shape, TaskGrid grid, AttentionInputs<T> in, T* dk, T* dv) {
  constexpr int M = Tile<T>::micro, size = Tile<T>::size;
  __shared__ TileMemory<T> memory;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  for (int64_t i = blockIdx.x; i < grid.count(); i += gridDim.x) {
    const TileTask task = grid.task(grid.count() - 1 - i, size, TileSums<T, kSlices>::columns);
    const HeadRows<T> keys = shape.keys(in.k, task.head).from(task.first_row);
    const HeadRows<T> values = shape.keys(in.v, task.head).from(task.first_row);
    TileSums<T, kSlices> dk_sums, dv_sums;
    dk_sums.clear();
    dv_sums.clear();
    const int64_t last_key = (task.first_row + size < shape.Nk ? task.first_row + size : shape.Nk) - 1;
    const int64_t b = task.head / shape.kv_heads, group = shape.heads / shape.kv_heads;
    bool shown[M];
    for (int r = 0; r < M; ++r) shown[r] = shape.shows(b, task.first_row + ty * M + r);
    const int64_t begin_query = shape.first_query(task.first_row) / size * size;
    const int64_t tiles = shape.Nq > begin_query ? ceil_div(shape.Nq - begin_query, size) : 0;
    for (int64_t step = 0; step < group * tiles; ++step) {
      const int64_t head = task.head * group + step / tiles, first = begin_query + step % tiles * size;
      Visible visible[M];
      for (int r = 0; r < M; ++r) {
        const int64_t begin = shape.first_query(task.first_row + ty * M + r) - first;
        visible[r] = {clamp_to_tile(begin, size), clamp_to_tile(shape.Nq - first, size)};
      }
      const bool whole = shape.first_query(last_key) <= first;
      T p[M][M], ds[M][M];
      const HeadRows<T> queries = shape.queries(in.q, head).from(first);
      const HeadRows<T> gradients = shape.queries(in.dy, head).from(first);
      tile_products(keys, queries, memory, p);
      tile_products(values, gradients, memory, ds);
      for (int c = 0; c < M; ++c) {
        const int column = tx + c * kSide;
        const int64_t query = first + column, at = head * shape.Nq + query;
        const T lse = query < shape.Nq ? in.lse[at] : T(0), delta = query < shape.Nq ? in.delta[at] : T(0);
        for (int r = 0; r < M; ++r) {
          const bool sees = column >= visible[r].begin && column < visible[r].end && shown[r];
          p[r][c] = sees ? exp_of(p[r][c] * in.factor - lse) : T(0);
          ds[r][c] = sees ? p[r][c] * (ds[r][c] - delta) * in.factor : T(0);
          memory.scores[ty * M + r][column] = p[r][c];
        }
      }
      dv_sums.add(memory, gradients, task.first_column, visible, whole);
      for (int r = 0; r < M; ++r)
        for (int c = 0; c < M; ++c) memory.scores[ty * M + r][tx + c * kSide] = ds[r][c];
      dk_sums.add(memory, queries, task.first_column, visible, whole);
    }
    const int64_t at = shape.key_offset(task.head) + task.first_row * shape.kv_width;
    dk_sums.store(dk + at, shape.kv_width, keys.count, task.first_column, shape.d);
    dv_sums.store(dv + at, shape.kv_width, keys.count, task.first_column, shape.d);
  }
}

template <class T, int kSlices>
static void attention_gradients(const Context& ctx, const AttentionBackwardArgs& args) {
  const AttentionShape shape = shape_of(args);
  const T* dy = static_cast<const T*>(args.dy);
  const Scratch<T> delta(ctx, shape.B * shape.heads * shape.Nq);
  const AttentionInputs<T> in{dy,
                              static_cast<const T*>(args.q),
                              static_cast<const T*>(args.k),
                              static_cast<const T*>(args.v),
                              static_cast<const T*>(args.lse),
                              delta.get(),
                              static_cast<T>(args.scale)};
  const TaskGrid over_queries = grid_of<T, kSlices>(shape, shape.heads, shape.Nq);
  const TaskGrid over_keys = grid_of<T, kSlices>(shape, shape.kv_heads, shape.Nk);
  if (over_queries.count() > 0) {
    launch(ctx, attention_dq_kernel<T, kSlices>, grid_for(over_queries.count(), 1), kBlock, 0, shape, over_queries, in,
           static_cast<const T*>(args.y), static_cast<T*>(args.dq));
  }
  if (over_keys.count() > 0) {
    launch(ctx, attention_dkv_kernel<T, kSlices>, grid_for(over_keys.count(), 1), kBlock, 0, shape, over_keys, in,
           static_cast<T*>(args.dk), static_cast<T*>(args.dv));
  }
}

void attention_backward(const Context& ctx, const AttentionBackwardArgs& args) {
  if (args.d == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    dispatch_width(args.d, [&](auto slices) { attention_gradients<decltype(zero), slices.value>(ctx, args); });
  });
}

}  // namespace st_moe::cuda
