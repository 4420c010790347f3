#pragma once
#include "cuda/kernel.cuh"

// Sums over the rows of [batch, rows, columns], in an order that depends only on the sizes: gradients of biases and of
// norm weights. A thread adds T, threads and chunks of rows are added in double, in order.
namespace st_moe::cuda {

constexpr int kColumnTile = kWarp, kRowLanes = 8;
constexpr int64_t kChunkRows = 64;  // a chunk has no fewer rows, and there are
constexpr int64_t kRowChunks = 32;  // at most so many chunks

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

template <class T, int N>
struct AddChunks {
  const double* partial;  // [N, batch, chunks, columns]
  ColumnSums<T, N> sums;
  int64_t batch, chunks, columns;

  __device__ void operator()(int64_t i) const {  // i in [0, N · batch · columns)
    const int64_t group = i / columns, column = i % columns;
    T* sum = sums.sum[group / batch];
    if (!sum) return;
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[(group * chunks + chunk) * columns + column];
    sum[group % batch * columns + column] = static_cast<T>(total);
  }
};

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
  if (chunks > 1) {
    elementwise(ctx, N * batch * columns, AddChunks<T, N>{partial.get(), sums, batch, chunks, columns});
  }
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
