#pragma once
#include "cuda/row_lanes.cuh"

// Sums over the rows of [batch, rows, columns], in an order that depends only on the sizes: gradients of biases and of
// norm weights. A thread adds T, threads and chunks of rows are added in double, in order.
namespace st_moe::cuda {

constexpr int kColumnTile = kWarp, kRowLanes = 8;
constexpr int64_t kChunkRows = 64;  // a chunk has no fewer rows, and there are
constexpr int64_t kRowChunks = 32;  // at most so many chunks
constexpr int64_t kPassRows = 8;    // the same of a pass over rows that also sums columns
constexpr int64_t kPassChunks = 512;

template <class T, int N>
struct ColumnTerms {
  T value[N];
};

template <class T, int N>
struct ColumnSums {
  T* sum[N];  // each [batch, columns], or null
};

// term(row, column) returns ColumnTerms<T, N>, with row in [0, batch · rows).
// partial [N, batch, chunks, columns], or null if one chunk has all rows and writes the sums directly.
template <class T, int N, class F>
__global__ void __launch_bounds__(kColumnTile* kRowLanes)
    column_partials_kernel(int64_t batch, int64_t rows, int64_t columns, int64_t chunk_rows, F term, double* partial,
                           ColumnSums<T, N> sums) {
  __shared__ double lanes[N][kRowLanes][kColumnTile];
  const int64_t begin = blockIdx.y * chunk_rows, end = begin + chunk_rows < rows ? begin + chunk_rows : rows;
  const int64_t tiles = ceil_div(columns, kColumnTile);
  for (int64_t task = blockIdx.x; task < batch * tiles; task += gridDim.x) {
    const int64_t b = task / tiles, column = task % tiles * kColumnTile + threadIdx.x;
    LaneSum<T> sum[N];
    if (column < columns) {
#pragma unroll 4
      for (int64_t row = begin + threadIdx.y; row < end; row += kRowLanes) {
        const ColumnTerms<T, N> terms = term(b * rows + row, column);
        for (int n = 0; n < N; ++n) sum[n].add(terms.value[n]);
      }
    }
    for (int n = 0; n < N; ++n) lanes[n][threadIdx.y][threadIdx.x] = sum[n].total();
    __syncthreads();
    for (int n = threadIdx.y; n < N; n += kRowLanes) {
      if (column >= columns) break;
      double total = 0;
      for (int lane = 0; lane < kRowLanes; ++lane) total += lanes[n][lane][threadIdx.x];
      if (partial) {
        partial[((n * batch + b) * gridDim.y + blockIdx.y) * columns + column] = total;
      } else if (sums.sum[n]) {
        sums.sum[n][b * columns + column] = static_cast<T>(total);
      }
    }
    __syncthreads();
  }
}

// sums.sum[n] [batch, columns] = Σ of partial [N, batch, chunks, columns] over the chunks
template <class T, int N>
__global__ void __launch_bounds__(kColumnTile* kRowLanes)
    add_chunks_kernel(int64_t batch, int64_t chunks, int64_t columns, const double* partial, ColumnSums<T, N> sums) {
  __shared__ double lanes[kRowLanes][kColumnTile];
  const int64_t tiles = ceil_div(columns, kColumnTile);
  for (int64_t task = blockIdx.x; task < N * batch * tiles; task += gridDim.x) {
    const int64_t group = task / tiles, column = task % tiles * kColumnTile + threadIdx.x;
    double total = 0;
    for (int64_t chunk = threadIdx.y; column < columns && chunk < chunks; chunk += kRowLanes)
      total += partial[(group * chunks + chunk) * columns + column];
    lanes[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    T* sum = sums.sum[group / batch];
    if (threadIdx.y == 0 && column < columns && sum) {
      for (int lane = 1; lane < kRowLanes; ++lane) total += lanes[lane][threadIdx.x];
      sum[group % batch * columns + column] = static_cast<T>(total);
    }
    __syncthreads();
  }
}

template <class T, int N>
void add_chunks(const Context& ctx, int64_t batch, int64_t chunks, int64_t columns, const double* partial,
                ColumnSums<T, N> sums) {
  launch(ctx, add_chunks_kernel<T, N>, grid_for(N * batch * ceil_div(columns, kColumnTile), 1),
         dim3(kColumnTile, kRowLanes), 0, batch, chunks, columns, partial, sums);
}

// sums.sum[n] [batch, columns] = Σ over rows of term(row, column).value[n]; zeros without rows.
template <class T, int N, class F>
void sum_columns(const Context& ctx, int64_t batch, int64_t rows, int64_t columns, F term, ColumnSums<T, N> sums) {
  if (batch == 0 || columns == 0) return;
  const int64_t balanced = ceil_div(rows, kRowChunks), chunk_rows = balanced < kChunkRows ? kChunkRows : balanced;
  const int64_t chunks = rows > chunk_rows ? ceil_div(rows, chunk_rows) : 1;
  const Scratch<double> partial(ctx, chunks > 1 ? N * batch * chunks * columns : 0);
  const dim3 grid(grid_for(batch * ceil_div(columns, kColumnTile), 1), static_cast<unsigned>(chunks));
  launch(ctx, column_partials_kernel<T, N, F>, grid, dim3(kColumnTile, kRowLanes), 0, batch, rows, columns, chunk_rows,
         term, partial.get(), sums);
  if (chunks > 1) add_chunks(ctx, batch, chunks, columns, partial.get(), sums);
}

// Rows by groups, and then their columns by threads, while they are in the cache of the block. partial [N, chunks,
// columns].
template <int kThreads, class T, int N, class F, class Row>
__global__ void __launch_bounds__(kBlock, half_resident(kBlock))
    rows_and_columns_kernel(int64_t rows, int64_t columns, int64_t chunk_rows, F term, double* partial, Row row) {
  const int64_t begin = blockIdx.x * chunk_rows, end = min_of(rows, begin + chunk_rows);
#pragma unroll 1
  for (int64_t t = begin + threadIdx.x / kThreads; t < end; t += kBlock / kThreads) row(t, RowLanes<kThreads>{});
  __syncthreads();
#pragma unroll 1
  for (int64_t column = threadIdx.x; column < columns; column += kBlock) {
    LaneSum<T> sum[N];
#pragma unroll 4
    for (int64_t t = begin; t < end; ++t) {
      const ColumnTerms<T, N> terms = term(t, column);
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n].add(terms.value[n]);
    }
#pragma unroll
    for (int64_t n = 0; n < N; ++n) partial[(n * gridDim.x + blockIdx.x) * columns + column] = sum[n].total();
  }
}

// for_rows with `row`, and sum_columns of term(t, column), which may read what row(t) wrote, in one pass over memory.
template <class T, int N, class F, class Row>
void sum_columns_of_rows(const Context& ctx, int64_t rows, int64_t columns, Row row, F term, ColumnSums<T, N> sums) {
  const int64_t chunk_rows = max_of(kPassRows, ceil_div(rows, kPassChunks)), chunks = ceil_div(rows, chunk_rows);
  const Scratch<double> partial(ctx, N * chunks * columns);
  const auto pass = [&](auto threads) {
    launch(ctx, rows_and_columns_kernel<decltype(threads)::value, T, N, F, Row>, static_cast<unsigned>(chunks), kBlock,
           0, rows, columns, chunk_rows, term, partial.get(), row);
  };
  if (rows > 0 && columns <= kWarpWidth) pass(std::integral_constant<int, kWarp>{});
  if (rows > 0 && columns > kWarpWidth) pass(std::integral_constant<int, kBlock>{});
  add_chunks(ctx, 1, chunks, columns, partial.get(), sums);
}

template <class T>
struct ColumnOf {
  const T* x;
  int64_t columns;

  __device__ ColumnTerms<T, 1> operator()(int64_t row, int64_t column) const { return {{x[row * columns + column]}}; }
};

// out [batch, columns] = Σ over rows of x [batch, rows, columns]
template <class T>
void sum_columns(const Context& ctx, int64_t batch, int64_t rows, int64_t columns, const T* x, T* out) {
  sum_columns(ctx, batch, rows, columns, ColumnOf<T>{x, columns}, ColumnSums<T, 1>{{out}});
}

}  // namespace st_moe::cuda
