#include "core/ops/reductions.h"
#include "cuda/vector.cuh"

// The order of a sum depends only on the shape. A thread adds In, threads are added in double.
namespace st_moe::cuda {

constexpr int64_t kChunk = 16384;  // elements of a long row that one block sums

// Σ of x [n] for the thread `lane` of `lanes`.
template <int N, class T>
__device__ static inline double sum_of(const T* x, int lane, int lanes, int64_t n) {
  LaneSum<T> sum;
  for (int64_t i = lane * N; i < n; i += lanes * N) {
    const Vector<T, N> values = load<N>(x + i);
    T part = 0;
    for (int c = 0; c < N; ++c) part += values[c];
    sum.add(part);
  }
  return sum.total();
}

// x [rows, n] → y [rows], times factor. One warp per row.
template <class In, class Out, int N>
__global__ void __launch_bounds__(kBlock) sum_rows_kernel(const In* x, Out* y, int64_t rows, int64_t n, double factor) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t{gridDim.x} * (blockDim.x / kWarp);
  for (int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp; row < rows; row += warps) {
    const double sum = warp_reduce(sum_of<N>(x + row * n, lane, kWarp, n), Sum{});
    if (lane == 0) y[row] = static_cast<Out>(factor * sum);
  }
}

// x [rows, n] → partial [rows, chunks]. One block per chunk of a row.
template <class T, int N>
__global__ void __launch_bounds__(kBlock) sum_chunks_kernel(const T* x, double* partial, int64_t rows, int64_t n) {
  const int64_t chunks = ceil_div(n, kChunk);
  for (int64_t c = blockIdx.x; c < rows * chunks; c += gridDim.x) {
    const int64_t row = c / chunks, first = c % chunks * kChunk;
    const double mine = sum_of<N>(x + row * n + first, threadIdx.x, blockDim.x, min_of(n - first, kChunk));
    const double sum = block_reduce(mine, Sum{}, 0.0);
    if (threadIdx.x == 0) partial[c] = sum;
  }
}

template <class In, class Out>
static void sum_rows(const Context& ctx, const In* x, Out* y, int64_t rows, int64_t n, double factor) {
  dispatch_width<vector_width<In>>(n, aligned(x), [&](auto width) {
    launch(ctx, sum_rows_kernel<In, Out, width>, grid_for(rows, kBlock / kWarp), kBlock, 0, x, y, rows, n, factor);
  });
}

template <class T>
static void reduce_rows(const Context& ctx, const ReduceArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const int64_t chunks = ceil_div(args.axis, kChunk);
  if (chunks <= 1) return sum_rows(ctx, x, y, args.outer, args.axis, args.factor);
  Scratch<double> partial(ctx, args.outer * chunks);
  dispatch_width<vector_width<T>>(args.axis, aligned(x), [&](auto width) {
    launch(ctx, sum_chunks_kernel<T, width>, grid_for(args.outer * chunks, 1), kBlock, 0, x, partial.get(), args.outer,
           args.axis);
  });
  sum_rows(ctx, partial.get(), y, args.outer, chunks, args.factor);
}

// x [outer, axis, inner] → y [outer, blocks, inner]: a thread sums `rows` rows of a column.
template <class In, class Out>
struct SumColumn {
  const In* x;
  Out* y;
  int64_t axis, inner, blocks, rows;
  double factor;
  __device__ void operator()(int64_t i) const {
    const int64_t column = i % inner, block = i / inner % blocks, o = i / inner / blocks;
    const int64_t end = min_of(axis, (block + 1) * rows);
    LaneSum<In> sum;
    for (int64_t r = block * rows; r < end; ++r) sum.add(x[(o * axis + r) * inner + column]);
    y[i] = static_cast<Out>(factor * sum.total());
  }
};

// Splits rows into blocks if columns alone have too few threads to fill a GPU.
template <class T>
static void reduce_columns(const Context& ctx, const ReduceArgs& args) {
  constexpr int64_t kThreads = int64_t{1} << 17, kLeastRows = 64;
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const int64_t columns = args.outer * args.inner;
  const int64_t wanted = max_of(int64_t{1}, min_of(ceil_div(args.axis, kLeastRows), kThreads / columns));
  const int64_t rows = max_of(int64_t{1}, ceil_div(args.axis, wanted)),
                blocks = max_of(int64_t{1}, ceil_div(args.axis, rows));
  if (blocks == 1) {
    return elementwise(ctx, columns, SumColumn<T, T>{x, y, args.axis, args.inner, 1, rows, args.factor});
  }
  Scratch<double> partial(ctx, columns * blocks);
  elementwise(ctx, columns * blocks, SumColumn<T, double>{x, partial.get(), args.axis, args.inner, blocks, rows, 1.0});
  elementwise(ctx, columns, SumColumn<double, T>{partial.get(), y, blocks, args.inner, 1, blocks, args.factor});
}

void reduce(const Context& ctx, const ReduceArgs& args) {
  if (args.outer == 0 || args.inner == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.inner == 1) return reduce_rows<T>(ctx, args);
    reduce_columns<T>(ctx, args);
  });
}

}  // namespace st_moe::cuda
