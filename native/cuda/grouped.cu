#include "cuda/grouped.h"

#include "cuda/operands.cuh"

// cuBLAS takes the sizes of groups from the host. If only the device knows them, the host would have to wait for it:
// instead a plain tiled kernel has as many tiles as any sizes can need, and each block finds its group.
namespace st_moe::cuda {

constexpr int kTile = 64;       // rows and columns of a tile of the result
constexpr int kDepth = 16;      // of the inner dimension at a time
constexpr int kThreadTile = 4;  // a thread has 4 × 4 results
constexpr int kTileSide = kTile / kThreadTile;

template <class O>
struct StridedMatrix {
  const typename O::Stored* data;
  int64_t row_stride, column_stride;
};

// A tile of c [M, N] (rows ldc apart) = a [M, K] · b [K, N] at (m0, n0), by a block. Consecutive threads load along
// the dimension that is contiguous in memory. Every result is one sum over K in order.
template <class O, class C>
__device__ static void tile_product(StridedMatrix<O> a, StridedMatrix<O> b, Stored<C>* c, int64_t ldc, int64_t M,
                                    int64_t N, int64_t K, int64_t m0, int64_t n0) {
  using T = decltype(O::load(Stored<O>{}));
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
      if (m < M && n < N) c[m * ldc + n] = C::store(sum[i][j]);
    }
}

// By a block. Wrong ends are reported; rows stay within [0, R] whatever they are.
__device__ static void check_ends(const RowGroups& groups, Stream::ErrorFlag* error_flag) {
  for (int64_t g = threadIdx.x; g < groups.G; g += kBlock)
    if (groups.ends[g] < (g > 0 ? groups.ends[g - 1] : 0) || groups.ends[g] > groups.R)
      report_error(error_flag, kExpertError, groups.ends[g]);
}

// multiply_rows. Blocks take (row tile, column tile).
template <class O, class C>
__global__ void __launch_bounds__(kBlock, sizeof(Stored<O>) == 8 ? 1 : half_resident(kBlock))
    grouped_rows_kernel(RowBlocks<kTile> tiles, Matrix a, Matrix w, Stored<C>* c, int64_t ldc, int64_t N,
                        bool transposed, Stream::ErrorFlag* error_flag) {
  if (tiles.block() == 0 && tiles.strip() == 0) check_ends(tiles.groups, error_flag);
  const auto rows = tiles.rows();
  if (rows.empty()) return;
  const auto [g, begin, end] = rows;
  const auto *a_data = static_cast<const Stored<O>*>(a.data), *w_data = static_cast<const Stored<O>*>(w.data);
  const StridedMatrix<O> b{w_data + g * w.rows * w.columns, transposed ? 1 : w.columns, transposed ? w.columns : 1};
  tile_product<O, C>({a_data + begin * a.columns, a.columns, 1}, b, c + begin * ldc, ldc, end - begin, N,
                     transposed ? w.columns : w.rows, 0, tiles.strip() * kTile);
}

// multiply_over_rows. Blocks take (group, row tile, column tile).
template <class O, class C>
__global__ void __launch_bounds__(kBlock, sizeof(Stored<O>) == 8 ? 1 : half_resident(kBlock))
    over_rows_kernel(RowGroups groups, Matrix a, Matrix b, Stored<C>* c, int64_t apart, int64_t M, int64_t N) {
  const auto *a_data = static_cast<const Stored<O>*>(a.data), *b_data = static_cast<const Stored<O>*>(b.data);
  const int64_t row_tiles = ceil_div(M, kTile), column_tiles = ceil_div(N, kTile), each = row_tiles * column_tiles;
  for (int64_t work = blockIdx.x; work < groups.G * each; work += gridDim.x) {
    const int64_t g = work / each, tile = work % each, first = groups.begin(g);
    tile_product<O, C>({a_data + first * a.columns, 1, a.columns}, {b_data + first * b.columns, b.columns, 1},
                       c + g * apart, N, M, N, groups.end(g) - first, tile / column_tiles * kTile,
                       tile % column_tiles * kTile);
  }
}

// Calls f(O{}, C{}) with the types of the operands and of the result.
template <class F>
static void dispatch_types(DType operands, DType result, F&& f) {
  if (operands == DType::f64 && result == DType::f64) return f(F64{}, F64{});
  if (operands == DType::f32 && result == DType::f32) return f(F32{}, F32{});
  if (operands == DType::bf16 && result == DType::f32) return f(Bf16{}, F32{});
  if (operands == DType::f16 && result == DType::f32) return f(F16{}, F32{});
  if (operands == DType::bf16 && result == DType::bf16) return f(Bf16{}, Bf16{});
  if (operands == DType::f16 && result == DType::f16) return f(F16{}, F16{});
  fail(ErrorCode::dtype, "GEMMs of %s cannot have results of %s", dtype_name(operands), dtype_name(result));
}

static const void* offset(const void* data, int64_t elements, DType dtype) {
  return static_cast<const char*>(data) + elements * static_cast<int64_t>(dtype_size(dtype));
}
static void* offset(void* data, int64_t elements, DType dtype) {
  return static_cast<char*>(data) + elements * static_cast<int64_t>(dtype_size(dtype));
}

// product(group, its first row, its end) of all groups.
template <class Product>
static void multiply_each(const Context& ctx, DType operands, DType result, const RowGroups& groups,
                          Product&& product) {
  std::vector<Gemm> products;
  for (int64_t g = 0, begin = 0; g < groups.G; begin = groups.host_ends[g++])
    products.push_back(product(g, begin, groups.host_ends[g]));
  multiply_grouped(ctx, operands, result, products);
}

void multiply_rows(const Context& ctx, DType operands, DType result, const RowGroups& groups, const Matrix& a,
                   const Matrix& w, bool transposed, void* c, int64_t ldc, int64_t N) {
  if (groups.R == 0 || N == 0) return;
  const auto product = [&](int64_t g, int64_t begin, int64_t end) {
    Gemm p{end - begin,
           N,
           transposed ? w.columns : w.rows,
           offset(a.data, begin * a.columns, operands),
           offset(w.data, g * w.rows * w.columns, operands),
           offset(c, begin * ldc, result),
           a.columns,
           w.columns,
           ldc};
    p.transpose_b = transposed;
    return p;
  };
  if (groups.host_ends) return multiply_each(ctx, operands, result, groups, product);
  if (!groups.ends) {
    Gemm p = product(0, 0, groups.each);
    p.batch = groups.G, p.a_stride = groups.each * a.columns, p.b_stride = w.rows * w.columns,
    p.c_stride = groups.each * ldc;
    return multiply(ctx, operands, result, p);
  }
  const RowBlocks<kTile> tiles(groups);
  dispatch_types(operands, result, [&](auto o, auto out) {
    using C = decltype(out);
    launch(ctx, grouped_rows_kernel<decltype(o), C>, tiles.grid(ceil_div(N, kTile)), kBlock, 0, tiles, a, w,
           static_cast<Stored<C>*>(c), ldc, N, transposed, stream_of(ctx).error_flag());
  });
}

void multiply_over_rows(const Context& ctx, DType operands, DType result, const RowGroups& groups, const Matrix& a,
                        const Matrix& b, void* c, int64_t apart, int64_t M, int64_t N) {
  const auto product = [&](int64_t g, int64_t begin, int64_t end) {
    Gemm p{M,
           N,
           end - begin,
           offset(a.data, begin * a.columns, operands),
           offset(b.data, begin * b.columns, operands),
           offset(c, g * apart, result),
           a.columns,
           b.columns,
           N};
    p.transpose_a = true;
    return p;
  };
  if (groups.host_ends) return multiply_each(ctx, operands, result, groups, product);
  if (!groups.ends) {
    Gemm p = product(0, 0, groups.each);
    p.batch = groups.G, p.a_stride = groups.each * a.columns, p.b_stride = groups.each * b.columns, p.c_stride = apart;
    return multiply(ctx, operands, result, p);
  }
  const int64_t tiles = groups.G * ceil_div(M, kTile) * ceil_div(N, kTile);
  if (tiles == 0) return;
  dispatch_types(operands, result, [&](auto o, auto out) {
    using C = decltype(out);
    launch(ctx, over_rows_kernel<decltype(o), C>, grid_for(tiles, 1), kBlock, 0, groups, a, b,
           static_cast<Stored<C>*>(c), apart, M, N);
  });
}

}  // namespace st_moe::cuda
