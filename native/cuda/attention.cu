#include <cmath>

#include "core/ops/attention.h"
#include "cuda/attention_tile.cuh"

// Tiles of scores with a running maximum and sum; no matrix of all scores. A block computes up to 128 columns of a
// head's output; larger heads use more blocks, which recompute the scores.
namespace st_moe::cuda {

template <class T, int kColumns, int N>
__global__ void __launch_bounds__(kBlock, 2)
    attention_kernel(AttentionShape shape, TaskGrid grid, T factor, const T* q, const T* k, const T* v, T* y, T* lse) {
  constexpr int M = Tile<T>::micro, size = Tile<T>::size;
  __shared__ TileMemory<T> memory;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  const TileTask task = grid.task(blockIdx.x, kColumns);
  const int64_t first_row = task.tile * size, last_row = min_of(first_row + size, shape.Nq) - 1;
  const HeadRows<T> queries = shape.queries(q, task.b, task.h).from(first_row);
  const int64_t kv_head = shape.by_group.quotient(static_cast<uint32_t>(task.h));
  const HeadRows<T> keys = shape.keys(k, task.b, kv_head), values = shape.keys(v, task.b, kv_head);
  TileSums<T, kColumns> sums;
  sums.clear();
  T largest[M], total[M];
  for (int r = 0; r < M; ++r) largest[r] = -static_cast<T>(INFINITY), total[r] = 0;
  for (int64_t first_key = 0; first_key < shape.seen(last_row); first_key += size) {
    const Seen seen = shape.seen(first_row, first_key, size);
    T s[M][M];
    tile_products<N>(queries, keys.from(first_key), memory, s);
    bool shown[M];
    for (int c = 0; c < M; ++c) shown[c] = shape.shows(task.b, first_key + tx + c * kSide);
    T rescale[M];
    for (int r = 0; r < M; ++r) {
      const int row = ty * M + r;
      T most = largest[r];
      for (int c = 0; c < M; ++c) {
        s[r][c] *= factor;
        if (seen(row, tx + c * kSide) && shown[c]) most = Max{}(most, s[r][c]);
      }
      most = reduce_row(most, Max{});
      const T shift = most == -static_cast<T>(INFINITY) ? T(0) : most;  // only −inf so far: e^−inf, not e^NaN
      rescale[r] = exp_of(largest[r] - shift);
      T sum = 0;
      for (int c = 0; c < M; ++c) {
        const int column = tx + c * kSide;
        const T p = seen(row, column) && shown[c] ? exp_of(s[r][c] - shift) : T(0);
        memory.scores[row][column] = p;
        sum += p;
      }
      total[r] = total[r] * rescale[r] + reduce_row(sum, Sum{});
      largest[r] = most;
    }
    sums.scale(rescale);
    sums.template add<N>(memory, values.from(first_key), task.first_column, seen.diagonal >= size - 1, seen);
  }
  T inverse[M];
  for (int r = 0; r < M; ++r) {
    const int64_t query = first_row + ty * M + r;
    const bool sees = shape.Nk > 0 && !(shape.mask && total[r] == 0);
    if (sees && largest[r] == -static_cast<T>(INFINITY)) total[r] = static_cast<T>(NAN);
    inverse[r] = sees ? T(1) / total[r] : T(0);
    if (tx == 0 && task.first_column == 0 && query < shape.Nq)
      lse[(task.b * shape.heads + task.h) * shape.Nq + query] =
          shape.Nk > 0 ? largest[r] + std::log(total[r]) : largest[r];
  }
  sums.scale(inverse);
  sums.template store<N>(y + shape.query_offset(task.b, task.h) + first_row * shape.width, shape.width, queries.count,
                         task.first_column, shape.d);
}

void attention(const Context& ctx, const AttentionArgs& args) {
  const AttentionShape shape = attention_shape(args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *q = static_cast<const T*>(args.q), *k = static_cast<const T*>(args.k), *v = static_cast<const T*>(args.v);
    T* y = static_cast<T*>(args.y);
    dispatch_columns<T>(args.d, aligned(q, k, v, y), [&](auto columns, auto n) {
      const TaskGrid grid(shape.B, shape.heads, ceil_div(shape.Nq, Tile<T>::size), column_groups(shape, columns));
      if (grid.blocks() == 0) return;
      launch(ctx, attention_kernel<T, columns, n>, grid.blocks(), kBlock, 0, shape, grid, static_cast<T>(args.scale), q,
             k, v, y, static_cast<T*>(args.lse));
    });
  });
}

}  // namespace st_moe::cuda
