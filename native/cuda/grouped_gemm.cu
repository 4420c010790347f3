#include "core/groups.h"
#include "cuda/operands.cuh"
#include "cuda/ops.h"

// cuBLAS takes the sizes of groups from the host. If only the device knows them, the host would have to wait for it:
// instead a plain tiled kernel has as many tiles as any sizes can need, and each block finds its group.
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
__global__ void __launch_bounds__(kBlock) group_offsets_kernel(const Index* sizes, int64_t G, int64_t R, int64_t* row,
                                                               int64_t* tile, Stream::ErrorFlag* error_flag) {
  // Each thread has a run of groups.
  const int64_t each = ceil_div(G, kBlock), begin = min_of(G, threadIdx.x * each), end = min_of(G, begin + each);
  int64_t rows = 0;
  for (int64_t g = begin; g < end; ++g) {
    if (sizes[g] < 0) report_error(error_flag, kGroupError, sizes[g]);
    rows += sizes[g] < 0 ? 0 : sizes[g];
  }
  const int64_t first_row = block_exclusive_scan(rows);
  if (threadIdx.x == kBlock - 1 && first_row + rows != R)
    report_error(error_flag, kGroupError, static_cast<int32_t>(min_of(first_row + rows, INT32_MAX)));

  int64_t tiles = 0, at = min_of(R, first_row);
  for (int64_t g = begin; g < end; ++g) {
    row[g] = at;
    const int64_t next = min_of(R, at + (sizes[g] < 0 ? 0 : sizes[g]));
    tiles += ceil_div(next - at, kTile);
    at = next;
  }
  int64_t first_tile = block_exclusive_scan(tiles);
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

template <class O>
struct StridedMatrix {
  const typename O::Stored* data;
  int64_t row_stride, column_stride;
};

// A tile of c [M, N] (rows ldc apart) = a [M, K] · b [K, N] at (m0, n0), by a block. Consecutive threads load along
// the dimension that is contiguous in memory. Every result is one sum over K in order.
template <class T, class O>
__device__ static void tile_product(StridedMatrix<O> a, StridedMatrix<O> b, T* c, int64_t ldc, int64_t M, int64_t N,
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
      a_tile[am][m] = has_a ? O::load(a.data[(m0 + m) * a.row_stride + (k0 + am) * a.column_stride]) : T(0);
      b_tile[bn][n] = has_b ? O::load(b.data[(k0 + bn) * b.row_stride + (n0 + n) * b.column_stride]) : T(0);
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

// c [R, N] = a [R, K] · op(w[group]), w [G, N, K] if transposed, else [G, K, N]; rows of a and w may be padded. Blocks
// take (row tile, column tile).
template <class T, class O>
__global__ void __launch_bounds__(kBlock)
    grouped_rows_kernel(RowGroups groups, Matrix a, Matrix w, T* c, int64_t N, bool transposed) {
  const auto *a_data = static_cast<const typename O::Stored*>(a.data),
             *w_data = static_cast<const typename O::Stored*>(w.data);
  const int64_t column_tiles = ceil_div(N, kTile), tiles = groups.tile[groups.G], K = a.columns;
  for (int64_t work = blockIdx.x; work < tiles * column_tiles; work += gridDim.x) {
    const int64_t tile = work / column_tiles, g = group_of(groups, tile), first = groups.row[g];
    const StridedMatrix<O> b{w_data + g * w.rows * w.columns, transposed ? 1 : w.columns, transposed ? w.columns : 1};
    tile_product<T>(StridedMatrix<O>{a_data + first * K, K, 1}, b, c + first * N, N, groups.row[g + 1] - first, N, K,
                    (tile - groups.tile[g]) * kTile, work % column_tiles * kTile);
  }
}

// c [G, M, N] = aᵀ · b over the rows of each group, a [R, M], b [R, N], whose rows may be padded. Blocks take (group,
// row tile, column tile).
template <class T, class O>
__global__ void __launch_bounds__(kBlock)
    over_rows_kernel(RowGroups groups, Matrix a, Matrix b, T* c, int64_t M, int64_t N) {
  const auto *a_data = static_cast<const typename O::Stored*>(a.data),
             *b_data = static_cast<const typename O::Stored*>(b.data);
  const int64_t row_tiles = ceil_div(M, kTile), column_tiles = ceil_div(N, kTile), each = row_tiles * column_tiles;
  for (int64_t work = blockIdx.x; work < groups.G * each; work += gridDim.x) {
    const int64_t g = work / each, tile = work % each, first = groups.row[g];
    tile_product<T>(StridedMatrix<O>{a_data + first * a.columns, 1, a.columns},
                    StridedMatrix<O>{b_data + first * b.columns, b.columns, 1}, c + g * M * N, N, M, N,
                    groups.row[g + 1] - first, tile / column_tiles * kTile, tile % column_tiles * kTile);
  }
}

// The groups of a call, for as long as it takes.
class DeviceGroups {
 public:
  DeviceGroups(const Context& ctx, const int32_t* sizes, int64_t G, int64_t R)
      : row_(ctx, G + 1), tile_(ctx, G + 1), groups_{row_.get(), tile_.get(), G} {
    if (G > 0)
      launch(ctx, group_offsets_kernel<int32_t>, 1, kBlock, 0, sizes, G, R, row_.get(), tile_.get(),
             stream_of(ctx).error_flag());
  }
  const RowGroups& get() const { return groups_; }

 private:
  Scratch<int64_t> row_, tile_;
  RowGroups groups_;
};

// Row `row` of an operand, or matrix `batch` of a weight.
template <class O>
static const void* at_row(const Matrix& m, int64_t row) {
  return static_cast<const typename O::Stored*>(m.data) + row * m.columns;
}

// c [R, N] = a · op(w[group])
template <class T, class O, class Args>
static void rows_product(const Context& ctx, const Args& args, const Matrix& a, const Matrix& w, void* c, int64_t N,
                         bool transposed) {
  if (args.R == 0 || N == 0) return;
  if (!args.host_sizes) {
    const DeviceGroups groups(ctx, args.group_sizes, args.G, args.R);
    const int64_t row_tiles = min_of(args.R, args.R / kTile + args.G);  // a group has at most one tile that is not full
    launch(ctx, grouped_rows_kernel<T, O>, grid_for(row_tiles * ceil_div(N, kTile), 1), kBlock, 0, groups.get(), a, w,
           static_cast<T*>(c), N, transposed);
    return;
  }
  std::vector<Gemm> products;
  for (int64_t g = 0, row = 0; g < args.G; row += args.host_sizes[g++]) {
    products.push_back({args.host_sizes[g], N, a.columns, at_row<O>(a, row), at_row<O>(w, g * w.rows),
                        static_cast<T*>(c) + row * N, a.columns, w.columns, N});
    products.back().transpose_b = transposed;
  }
  multiply_grouped(ctx, args.compute, args.dtype, products);
}

// c [G, M, N] = aᵀ · b over the rows of each group
template <class T, class O>
static void over_rows_product(const Context& ctx, const GroupedGemmBackwardArgs& args, const Matrix& a, const Matrix& b,
                              void* c, int64_t M, int64_t N) {
  const int64_t tiles = args.G * ceil_div(M, kTile) * ceil_div(N, kTile);
  if (tiles == 0) return;
  if (!args.host_sizes) {
    const DeviceGroups groups(ctx, args.group_sizes, args.G, args.R);
    launch(ctx, over_rows_kernel<T, O>, grid_for(tiles, 1), kBlock, 0, groups.get(), a, b, static_cast<T*>(c), M, N);
    return;
  }
  std::vector<Gemm> products;
  for (int64_t g = 0, row = 0; g < args.G; row += args.host_sizes[g++]) {
    products.push_back({M, N, args.host_sizes[g], at_row<O>(a, row), at_row<O>(b, row), static_cast<T*>(c) + g * M * N,
                        a.columns, b.columns, N});
    products.back().transpose_a = true;
  }
  multiply_grouped(ctx, args.compute, args.dtype, products);
}

template <class T, class O>
static void forward(const Context& ctx, const GroupedGemmArgs& args) {
  const OperandRows<T, O> x(ctx, args.x, args.R, args.I);
  OperandWeight<T, O> w(ctx, args.w, args.compute, args.G, args.O, args.I, args.w_packed);
  fill_operands(ctx, x.fill(), w.fill());
  w.filled();
  rows_product<T, O>(ctx, args, x.get(), w.get(), args.y, args.O, true);
}

void grouped_gemm(const Context& ctx, const GroupedGemmArgs& args) {
  check_groups(args.host_sizes, args.G, args.R);
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { forward<decltype(zero), decltype(operand)>(ctx, args); });
}

template <class T, class O>
static void backward(const Context& ctx, const GroupedGemmBackwardArgs& args) {
  const OperandRows<T, O> dy(ctx, args.dy, args.R, args.O), x(ctx, args.x, args.dw ? args.R : 0, args.I);
  OperandWeight<T, O> w(ctx, args.w, args.compute, args.dx ? args.G : 0, args.O, args.I,
                        args.dx ? args.w_packed : nullptr);
  fill_operands(ctx, dy.fill(), x.fill(), w.fill());
  w.filled();
  if (args.dx) rows_product<T, O>(ctx, args, dy.get(), w.get(), args.dx, args.I, false);
  if (args.dw) over_rows_product<T, O>(ctx, args, dy.get(), x.get(), args.dw, args.O, args.I);
}

void grouped_gemm_backward(const Context& ctx, const GroupedGemmBackwardArgs& args) {
  check_groups(args.host_sizes, args.G, args.R);
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { backward<decltype(zero), decltype(operand)>(ctx, args); });
}

}  // namespace st_moe::cuda
