#pragma once
#include "cpu/simd.h"

// The register tile of the GEMM: C [rows, cols] (+)= A · B over one block of k.
namespace st_moe::cpu::ST_MOE_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 14;  // 28 accumulators, 2 vectors of B and the broadcast of A in 32 registers
#else
constexpr int kTileRows = 6;  // 12 accumulators in 16 registers
#endif
constexpr int kTileVectors = 2;

template <class T>
struct TileShape {
  static constexpr int64_t block_k = 2048 / static_cast<int64_t>(sizeof(T));  // units: a panel of B stays near the core
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int rows = kTileRows, row_width = (kTileRows + lanes - 1) / lanes * lanes;
  static constexpr int cols = kTileVectors * lanes;
  static constexpr int64_t k_stride = block_k + lanes;  // between rows of A by k; no power of two, for the cache's sets
  static constexpr int64_t a_panel(bool by_k, int64_t units) { return by_k ? rows * k_stride : row_width * units; }
};

template <class T>
struct Tile {
  int64_t units;
  const T* a;  // rows of A by k, a_stride apart; or a panel by row
  int64_t a_stride;
  const T* b;  // [units] rows of a whole tile's width, b_stride apart
  int64_t b_stride;
  T* c;
  int64_t c_stride;
  int64_t rows, cols;  // what of the tile is written
  const T* bias;       // of these columns, or null
  bool a_by_k, accumulate, stream;
};

template <class T, int R, int NV>
static inline void write_edge(const Tile<T>& tile, const typename Simd<T>::V (&acc)[R][NV]) {
  constexpr int L = Simd<T>::lanes;
  alignas(kVectorBytes) T buffer[R][NV * L];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) Simd<T>::store(&buffer[i][j * L], acc[i][j]);
  for (int64_t i = 0; i < tile.rows; ++i)
    for (int64_t j = 0; j < tile.cols; ++j) {
      T value = buffer[i][j];
      if (tile.bias) value += tile.bias[j];
      T& c = tile.c[i * tile.c_stride + j];
      c = tile.accumulate ? c + value : value;
    }
}

// Computes R rows and writes tile.rows of them.
template <class T, class Math, int R, int NV, bool by_k>
[[gnu::noinline]] static void tile_kernel(const Tile<T>& tile) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int L = S::lanes;
  // Three rows a pointer, as far as the scales of an address reach.
  constexpr int kReach = 3, pointers = (R + kReach - 1) / kReach;
  const int64_t row_step = by_k ? tile.a_stride : 1, k_step = by_k ? 1 : TileShape<T>::row_width;
  V acc[R][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  if (!tile.stream)
    for (int64_t i = 0; i < tile.rows; ++i) {  // both ends: the rows need not be aligned
      __builtin_prefetch(tile.c + i * tile.c_stride, 1);
      __builtin_prefetch(tile.c + i * tile.c_stride + tile.cols - 1, 1);
    }
  const T *a[pointers], *b = tile.b;
#pragma GCC unroll 16
  for (int i = 0; i < pointers; ++i) a[i] = tile.a + i * kReach * row_step;
  const int64_t b_stride = tile.b_stride;
  for (int64_t k = tile.units; k > 0; --k) {
    V bv[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) bv[j] = S::load(b + j * L);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const V av = Math::broadcast(a[i / kReach] + i % kReach * row_step);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] = Math::add(acc[i][j], av, bv[j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < pointers; ++i) a[i] += k_step;
    b += b_stride;
  }
  if (tile.cols != NV * L) return write_edge<T, R, NV>(tile, acc);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    if (i >= tile.rows) break;
    T* c = tile.c + i * tile.c_stride;
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      V value = acc[i][j];
      if (tile.bias) value += S::load(tile.bias + j * L);
      if (tile.accumulate) value += S::load(c + j * L);
      if (tile.stream)
        S::stream(c + j * L, value);
      else
        S::store(c + j * L, value);
    }
  }
}

// The smallest kernel that holds the tile.
template <class T, class Math, int NV, int R = kTileRows>
static inline void run_rows(const Tile<T>& tile) {
  if constexpr (R > 2) {
    if (tile.rows <= R - 2) return run_rows<T, Math, NV, R - 2>(tile);
  }
  if (tile.a_by_k) return tile_kernel<T, Math, R, NV, true>(tile);
  tile_kernel<T, Math, R, NV, false>(tile);
}

template <class Math, class T>
static inline void run_tile(const Tile<T>& tile) {
  if (tile.cols <= Simd<T>::lanes) return run_rows<T, Math, 1>(tile);
  run_rows<T, Math, kTileVectors>(tile);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
