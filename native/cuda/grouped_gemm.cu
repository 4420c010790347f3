#include "cuda/ops.h"
#include "cuda/rows.cuh"

// The group sizes are on the device and the host never learns them, so a grouped cuBLAS call, which takes its sizes
// from the host (cuda/blas.h), would need a synchronisation. Instead a plain tiled kernel is launched with as many
// tiles as any sizes can need, and each block finds its group.
namespace st_moe::cuda {

constexpr int kTile = 64;       // rows and columns of a tile of the result
constexpr int kDepth = 16;      // of the inner dimension at a time
constexpr int kThreadTile = 4;  // a thread has 4 × 4 results
constexpr int kTileSide = kTile / kThreadTile;

struct RowGroups {
  const int64_t *row, *tile;  // [G + 1]: the first row of each group, the first tile of kTile rows
  int64_t G;
};

// One block. Wrong sizes are reported; rows stay within [0, R] whatever they are.
template <class Index>
__global__ void __launch_bounds__(kBlock)
    group_offsets_kernel(const Index* sizes, int64_t G, int64_t R, int64_t* row, int64_t* tile, Stream::Fault* fault) {
  __shared__ int64_t block_rows[kBlock], block_tiles[kBlock];
  // Each thread has a run of groups.
  const int64_t each = ceil_div(G, kBlock), begin = min_of(G, threadIdx.x * each), end = min_of(G, begin + each);
  int64_t rows = 0;
  for (int64_t g = begin; g < end; ++g) {
    if (sizes[g] < 0) report_fault(fault, kGroupFault, sizes[g]);
    rows += sizes[g] < 0 ? 0 : sizes[g];
  }
  block_rows[threadIdx.x] = rows;
  __syncthreads();
  int64_t first_row = 0;
  for (unsigned i = 0; i < threadIdx.x; ++i) first_row += block_rows[i];
  if (threadIdx.x == kBlock - 1 && first_row + rows != R)
    report_fault(fault, kGroupFault, static_cast<int32_t>(min_of(first_row + rows, INT32_MAX)));

  int64_t tiles = 0, at = min_of(R, first_row);
  for (int64_t g = begin; g < end; ++g) {
    row[g] = at;
    const int64_t next = min_of(R, at + (sizes[g] < 0 ? 0 : sizes[g]));
    tiles += ceil_div(next - at, kTile);
    at = next;
  }
  block_tiles[threadIdx.x] = tiles;
  __syncthreads();
  int64_t first_tile = 0;
  for (unsigned i = 0; i < threadIdx.x; ++i) first_tile += block_tiles[i];
  for (int64_t g = begin; g < end; ++g) {
    tile[g] = first_tile;
    first_tile += ceil_div((g + 1 < end ? row[g + 1] : at) - row[g], kTile);
  }
  if (threadIdx.x != kBlock - 1) return;
  row[G] = at;
  tile[G] = first_tile;
}

// The group of a tile: the last one that starts at or before it and is not empty.
__device__ static inline int64_t group_of(const RowGroups& groups, int64_t tile) {
  int64_t low = 0, high = groups.G;  // tile[low] ≤ tile < tile[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (groups.tile[middle] <= tile ? low : high) = middle;
  }
  return low;
}

template <class T>
struct StridedMatrix {
  const T* data;
  int64_t row_stride, column_stride;
};

// A tile of c [M, N] (rows ldc apart) = a [M, K] · b [K, N] at (m0, n0), by a block. Consecutive threads load along
// the dimension that is contiguous in memory. Every result is one sum over K in order.
template <class T>
__device__ static void tile_product(StridedMatrix<T> a, StridedMatrix<T> b, T* c, int64_t ldc, int64_t M, int64_t N,
                                    int64_t K, int64_t m0, int64_t n0) {
  __shared__ T a_tile[kDepth][kTile + 1], b_tile[kDepth][kTile + 1];
  const int row = threadIdx.x / kTileSide, column = threadIdx.x % kTileSide;
  const bool a_by_row = a.row_stride == 1, b_by_column = b.column_stride == 1;
  T sum[kThreadTile][kThreadTile] = {};
  for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
    for (int i = threadIdx.x; i < kDepth * kTile; i += kBlock) {
      const int m = a_by_row ? i % kTile : i / kDepth, am = a_by_row ? i / kTile : i % kDepth;
      const int n = b_by_column ? i % kTile : i / kDepth, bn = b_by_column ? i / kTile : i % kDepth;
      const bool has_a = m0 + m < M && k0 + am < K, has_b = n0 + n < N && k0 + bn < K;
      a_tile[am][m] = has_a ? a.data[(m0 + m) * a.row_stride + (k0 + am) * a.column_stride] : T(0);
      b_tile[bn][n] = has_b ? b.data[(k0 + bn) * b.row_stride + (n0 + n) * b.column_stride] : T(0);
    }
    __syncthreads();
    const int depth = static_cast<int>(min_of(kDepth, K - k0));
    for (int k = 0; k < depth; ++k)
#pragma unroll
      for (int i = 0; i < kThreadTile; ++i)
#pragma unroll
        for (int j = 0; j < kThreadTile; ++j)
          sum[i][j] += a_tile[k][row + i * kTileSide] * b_tile[k][column + j * kTileSide];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kThreadTile; ++i)
#pragma unroll
    for (int j = 0; j < kThreadTile; ++j) {
      const int64_t m = m0 + row + i * kTileSide, n = n0 + column + j * kTileSide;
      if (m < M && n < N) c[m * ldc + n] = sum[i][j];
    }
}

// c [R, N] = a [R, K] · op(w[group]); w [G, N, K] if transposed, else [G, K, N]. Blocks take (row tile, column tile).
template <class T>
__global__ void __launch_bounds__(kBlock)
    grouped_rows_kernel(RowGroups groups, const T* a, const T* w, T* c, int64_t N, int64_t K, bool transposed) {
  const int64_t column_tiles = ceil_div(N, kTile), tiles = groups.tile[groups.G];
  for (int64_t work = blockIdx.x; work < tiles * column_tiles; work += gridDim.x) {
    const int64_t tile = work / column_tiles, g = group_of(groups, tile), first = groups.row[g];
    const StridedMatrix<T> b{w + g * N * K, transposed ? 1 : N, transposed ? K : 1};
    tile_product(StridedMatrix<T>{a + first * K, K, 1}, b, c + first * N, N, groups.row[g + 1] - first, N, K,
                 (tile - groups.tile[g]) * kTile, work % column_tiles * kTile);
  }
}

// c [G, M, N] = aᵀ · b over the rows of each group, a [R, M], b [R, N]. Blocks take (group, row tile, column tile).
template <class T>
__global__ void __launch_bounds__(kBlock)
    over_rows_kernel(RowGroups groups, const T* a, const T* b, T* c, int64_t M, int64_t N) {
  const int64_t row_tiles = ceil_div(M, kTile), column_tiles = ceil_div(N, kTile), each = row_tiles * column_tiles;
  for (int64_t work = blockIdx.x; work < groups.G * each; work += gridDim.x) {
    const int64_t g = work / each, tile = work % each, first = groups.row[g];
    tile_product(StridedMatrix<T>{a + first * M, 1, M}, StridedMatrix<T>{b + first * N, N, 1}, c + g * M * N, N, M, N,
                 groups.row[g + 1] - first, tile / column_tiles * kTile, tile % column_tiles * kTile);
  }
}

// The groups of a call, for as long as it takes.
class DeviceGroups {
 public:
  DeviceGroups(const Context& ctx, const int32_t* sizes, int64_t G, int64_t R)
      : row_(ctx, G + 1), tile_(ctx, G + 1), groups_{row_.get(), tile_.get(), G} {
    if (G == 0 && R != 0)
      fail(ErrorCode::shape, "group sizes must sum to the %lld rows of x, got 0", static_cast<long long>(R));
    if (G > 0)
      launch(ctx, group_offsets_kernel<int32_t>, 1, kBlock, 0, sizes, G, R, row_.get(), tile_.get(),
             stream_of(ctx).fault());
  }
  const RowGroups& get() const { return groups_; }

 private:
  Scratch<int64_t> row_, tile_;
  RowGroups groups_;
};

// Blocks for the rows of all groups: each group has at most one tile that is not full.
static unsigned grid_of_rows(int64_t R, int64_t G, int64_t N) {
  return grid_for(min_of(R, R / kTile + G) * ceil_div(N, kTile), 1);
}

void grouped_gemm(const Context& ctx, const GroupedGemmArgs& args) {
  const DeviceGroups groups(ctx, args.group_sizes, args.G, args.R);
  if (args.R == 0 || args.O == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(ctx, grouped_rows_kernel<T>, grid_of_rows(args.R, args.G, args.O), kBlock, 0, groups.get(),
           static_cast<const T*>(args.x), static_cast<const T*>(args.w), static_cast<T*>(args.y), args.O, args.I, true);
  });
}

void grouped_gemm_backward(const Context& ctx, const GroupedGemmBackwardArgs& args) {
  const DeviceGroups groups(ctx, args.group_sizes, args.G, args.R);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
    if (args.dx && args.R > 0 && args.I > 0)
      launch(ctx, grouped_rows_kernel<T>, grid_of_rows(args.R, args.G, args.I), kBlock, 0, groups.get(), dy,
             static_cast<const T*>(args.w), static_cast<T*>(args.dx), args.I, args.O, false);
    const int64_t tiles = args.G * ceil_div(args.O, kTile) * ceil_div(args.I, kTile);
    if (args.dw && tiles > 0)
      launch(ctx, over_rows_kernel<T>, grid_for(tiles, 1), kBlock, 0, groups.get(), dy, x, static_cast<T*>(args.dw),
             args.O, args.I);
  });
}

}  // namespace st_moe::cuda
