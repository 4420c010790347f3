#include "core/ops/creation.h"
#include "cuda/layout.cuh"

namespace st_moe::cuda {

using CopyLayout = Layout<2>;

template <class T, class Index>
struct CopyElement {
  const T* in;
  T* out;
  Offsets<Index, 2> offsets;
  __device__ void operator()(int64_t i) const {
    int64_t offset[2];
    offsets.of(static_cast<Index>(i), offset);
    out[offset[1]] = in[offset[0]];
  }
};

constexpr int kTile = 32;     // side of the tiles of a transposition
constexpr int kTileRows = 8;  // threads [kTileRows, kTile]

// in [planes, Q, P] → out [planes, P, Q]; planes and the slower dimension of each side are strided.
struct Transposition {
  int64_t P, Q, in_q, out_p, planes;
  CopyLayout plane;
};

struct TransposedTiles {
  int64_t count;
  Divisor by_p, by_q;  // tiles [planes, q, p], fewer than 2^31 in any memory
  Offsets<uint32_t, 2> plane;
};

// Reads and writes along the dense dimension of each side; the tile is transposed in shared memory. One extra column
// avoids bank conflicts.
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    transpose_kernel(const T* in, T* out, Transposition t, TransposedTiles tiles) {
  __shared__ T tile[kTile][kTile + 1];
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
  for (int64_t n = blockIdx.x; n < tiles.count; n += gridDim.x) {
    const uint32_t row_of_tiles = tiles.by_p.quotient(n), plane = tiles.by_q.quotient(row_of_tiles);
    const int64_t p0 = int64_t{tiles.by_p.remainder(n)} * kTile,
                  q0 = int64_t{tiles.by_q.remainder(row_of_tiles)} * kTile;
    int64_t offset[2];
    tiles.plane.of(plane, offset);
    for (int q = row; q < kTile; q += kTileRows)
      if (p0 + column < t.P && q0 + q < t.Q) tile[q][column] = in[offset[0] + (q0 + q) * t.in_q + p0 + column];
    __syncthreads();
    for (int p = row; p < kTile; p += kTileRows)
      if (p0 + p < t.P && q0 + column < t.Q) out[offset[1] + (p0 + p) * t.out_p + q0 + column] = tile[column][p];
    __syncthreads();
  }
}

// The dimension that is dense in tensor `which`, or −1.
static int dense_dim(const CopyLayout& layout, int which) {
  for (int d = layout.rank - 1; d >= 0; --d)
    if (layout.strides[which][d] == 1) return d;
  return -1;
}

// Whether in and out are dense along different dimensions, both long enough for tiles.
static bool as_transposition(const CopyLayout& layout, Transposition* t) {
  const int p = dense_dim(layout, 0), q = dense_dim(layout, 1);
  if (p < 0 || q < 0 || p == q || layout.shape[p] < kTileRows || layout.shape[q] < kTileRows) return false;
  *t = {layout.shape[p], layout.shape[q], layout.strides[0][q], layout.strides[1][p], 1, {0, {}, {}}};
  for (int d = 0; d < layout.rank; ++d) {
    if (d == p || d == q) continue;
    const int to = t->plane.rank++;
    t->plane.shape[to] = layout.shape[d];
    for (int side = 0; side < 2; ++side) t->plane.strides[side][to] = layout.strides[side][d];
    t->planes *= layout.shape[d];
  }
  return true;
}

template <class T>
static void copy_all(const Context& ctx, const StridedCopyArgs& args, const CopyLayout& layout) {
  const T* in = static_cast<const T*>(args.in) + args.in_offset;
  T* out = static_cast<T*>(args.out) + args.out_offset;
  const int64_t size = size_of(layout.shape, layout.rank);
  Transposition t;
  if (as_transposition(layout, &t)) {
    const int64_t p_tiles = ceil_div(t.P, kTile), q_tiles = ceil_div(t.Q, kTile);
    const TransposedTiles tiles{t.planes * p_tiles * q_tiles, Divisor(p_tiles), Divisor(q_tiles),
                                Offsets<uint32_t, 2>(t.plane)};
    return launch(ctx, transpose_kernel<T>, grid_for(tiles.count, 1), kTile * kTileRows, 0, in, out, t, tiles);
  }
  dispatch_index(size, [&](auto index) {
    elementwise(ctx, size, CopyElement<T, decltype(index)>{in, out, Offsets<decltype(index), 2>(layout)});
  });
}

void strided_copy(const Context& ctx, const StridedCopyArgs& args) {
  CopyLayout layout{};
  if (!layout_of(args, layout)) return;
  dispatch_size(args.dtype, [&](auto zero) { copy_all<decltype(zero)>(ctx, args, layout); });
}

}  // namespace st_moe::cuda
