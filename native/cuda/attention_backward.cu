#include <cmath>

#include "core/ops/attention.h"
#include "cuda/attention_tile.cuh"
#include "cuda/row_lanes.cuh"

// The backward recomputes the probabilities from lse, once per pair of tiles. A block has some tiles of the keys of a
// head, whose dk and dv it sums up in registers. It adds to dq in memory that is its own, so that every sum has one
// owner and a fixed order, and nothing waits: a head has as many copies of dq as blocks, which a second kernel adds up.
// They are few, and one where there are enough heads.
namespace st_moe::cuda {

constexpr int64_t kEnoughBlocks = 256;  // about two for each multiprocessor of a large GPU
constexpr int64_t kMaxParts = 8;        // copies of dq
constexpr int64_t kFewTiles = 2;        // of keys: to add up copies would take as long as a tile

template <class T>
struct AttentionInputs {
  const T *dy, *q, *k, *v, *lse;
  const T* delta;  // [B, heads, Nq]: <dy, y>
  T factor;
};

// delta of row t of [B · Nq · heads, d]
template <class T, int N>
struct AttentionDelta {
  const T *dy, *y;
  T* delta;
  int64_t Nq, heads, d;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    LaneSum<T> sum;
    for (int64_t j = lanes.lane() * N; j < d; j += Lanes::size * N) {
      const Vector<T, N> left = load<N>(dy + t * d + j), right = load<N>(y + t * d + j);
      T part = 0;
      for (int c = 0; c < N; ++c) part += left[c] * right[c];
      sum.add(part);
    }
    const double total = lanes.sum(sum.total());
    if (lanes.lane() != 0) return;
    const MatrixIndex head = matrix_index(t, heads), query = matrix_index(head.row, Nq);
    delta[(query.row * heads + head.column) * Nq + query.column] = static_cast<T>(total);
  }
};

// Tiles are transposed: rows are keys, columns queries, of one head after another of those that share the keys. Task
// `tile` of n has every n-th tile of keys, and the copy of dq of that number.
template <class T, int kColumns, int N>
__global__ void __launch_bounds__(kBlock, 2)
    attention_backward_kernel(AttentionShape shape, TaskGrid grid, AttentionInputs<T> in, T* dq, T* dk, T* dv) {
  constexpr int M = Tile<T>::micro, size = Tile<T>::size;
  __shared__ TileMemory<T> memory;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  const TileTask task = grid.task(blockIdx.x, kColumns);
  const int64_t b = task.b, first_head = task.h * shape.group, end_head = first_head + shape.group;
  T* part = dq + task.tile * shape.B * shape.Nq * shape.width;
  TileSums<T, kColumns> dk_sums, dv_sums;
  dk_sums.clear();
  const int64_t start = shape.Nk > 0 ? shape.first_query(task.tile * size) : shape.Nq;
  const int64_t unseen = start < shape.Nq ? start / size * size : shape.Nq;
  for (int64_t h = first_head; h < end_head; ++h)
    for (int64_t first = 0; first < unseen; first += size)
      dk_sums.template store<N>(part + shape.query_offset(b, h) + first * shape.width, shape.width, shape.Nq - first,
                                task.first_column, shape.d);
  for (int64_t first_key = task.tile * size; first_key < shape.Nk; first_key += grid.tiles() * size) {
    const HeadRows<T> keys = shape.keys(in.k, b, task.h).from(first_key);
    const HeadRows<T> values = shape.keys(in.v, b, task.h).from(first_key);
    dk_sums.clear();
    dv_sums.clear();
    for (int64_t h = first_head; h < end_head; ++h)
      for (int64_t first = shape.first_query(first_key) / size * size; first < shape.Nq; first += size) {
        const Seen seen = shape.seen(first, first_key, size);
        const bool whole = seen.diagonal >= size - 1;
        const auto query_of_key = [&](int key, int query) { return seen(query, key); };
        const HeadRows<T> queries = shape.queries(in.q, b, h).from(first);
        const HeadRows<T> gradients = shape.queries(in.dy, b, h).from(first);
        const int64_t row = (b * shape.heads + h) * shape.Nq + first;
        bool shown[M];
        for (int r = 0; r < M; ++r) shown[r] = shape.shows(b, first_key + ty * M + r);
        T s[M][M];
        tile_products<N>(keys, queries, memory, s);
        for (int c = 0; c < M; ++c) {
          const int query = tx + c * kSide;
          const T lse = query < seen.queries ? in.lse[row + query] : T(0);
          for (int r = 0; r < M; ++r)
            memory.scores[ty * M + r][query] =
                seen(query, ty * M + r) && shown[r] ? exp_of(s[r][c] * in.factor - lse) : T(0);
        }
        dv_sums.template add<N>(memory, gradients, task.first_column, whole, query_of_key);
        tile_products<N>(values, gradients, memory, s);
        for (int c = 0; c < M; ++c) {
          const int query = tx + c * kSide;
          const T delta = query < seen.queries ? in.delta[row + query] : T(0);
          for (int r = 0; r < M; ++r) {
            T& score = memory.scores[ty * M + r][query];
            score = seen(query, ty * M + r) && shown[r] ? score * (s[r][c] - delta) * in.factor : T(0);
          }
        }
        dk_sums.template add<N>(memory, queries, task.first_column, whole, query_of_key);
        T* out = part + shape.query_offset(b, h) + first * shape.width;
        for (int64_t column = task.first_column; column < min_of(shape.d, task.first_column + kColumns);
             column += size) {
          TileSums<T, size> sums;
          sums.clear();
          if (first_key >= grid.tiles() * size) sums.template load<N>(out, shape.width, queries.count, column, shape.d);
          sums.template add<N, true>(memory, keys, column, whole, seen);
          sums.template store<N>(out, shape.width, queries.count, column, shape.d);
        }
      }
    const int64_t at = shape.key_offset(b, task.h) + first_key * shape.kv_width;
    dk_sums.template store<N>(dk + at, shape.kv_width, keys.count, task.first_column, shape.d);
    dv_sums.template store<N>(dv + at, shape.kv_width, keys.count, task.first_column, shape.d);
  }
}

// Σ of copies of size elements.
template <class T>
struct SumParts {
  const T* parts;
  T* sum;
  int64_t size, count;

  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    Vector<T, N> total = load<N>(parts + i);
    for (int64_t part = 1; part < count; ++part) {
      const Vector<T, N> values = load<N>(parts + part * size + i);
      for (int c = 0; c < N; ++c) total[c] += values[c];
    }
    store(sum + i, total);
  }
};

template <class T, int kColumns, int N>
static void attention_gradients(const Context& ctx, const AttentionShape& shape, AttentionInputs<T> in, const T* y,
                                T* dq, T* dk, T* dv) {
  const int64_t rows = shape.B * shape.Nq * shape.heads, queries = rows * shape.d;
  const int64_t tiles = max_of(1, ceil_div(shape.Nk, Tile<T>::size)), groups = column_groups(shape, kColumns);
  const int64_t blocks = max_of(1, shape.B * shape.kv_heads * groups);
  const int64_t count = tiles > kFewTiles ? max_of(1, min_of(min_of(tiles, kMaxParts), kEnoughBlocks / blocks)) : 1;
  const TaskGrid grid(shape.B, shape.kv_heads, count, groups);
  if (grid.blocks() == 0) return;
  const Scratch<T> delta(ctx, rows), parts(ctx, count > 1 ? count * queries : 0);
  for_rows(ctx, rows, shape.d, AttentionDelta<T, N>{in.dy, y, delta.get(), shape.Nq, shape.heads, shape.d});
  in.delta = delta.get();
  launch(ctx, attention_backward_kernel<T, kColumns, N>, grid.blocks(), kBlock, 0, shape, grid, in,
         count > 1 ? parts.get() : dq, dk, dv);
  if (count > 1) for_vectors<vector_width<T>>(ctx, queries, N > 1, SumParts<T>{parts.get(), dq, queries, count});
}

void attention_backward(const Context& ctx, const AttentionBackwardArgs& args) {
  const AttentionShape shape = attention_shape(args);
  if (args.d == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const AttentionInputs<T> in{static_cast<const T*>(args.dy),  static_cast<const T*>(args.q),
                                static_cast<const T*>(args.k),   static_cast<const T*>(args.v),
                                static_cast<const T*>(args.lse), nullptr,
                                static_cast<T>(args.scale)};
    const T* y = static_cast<const T*>(args.y);
    T *dq = static_cast<T*>(args.dq), *dk = static_cast<T*>(args.dk), *dv = static_cast<T*>(args.dv);
    dispatch_columns<T>(args.d, aligned(in.dy, in.q, in.k, in.v, y, dq, dk, dv), [&](auto columns, auto n) {
      attention_gradients<T, columns, n>(ctx, shape, in, y, dq, dk, dv);
    });
  });
}

}  // namespace st_moe::cuda
