#pragma once
#include "core/convert.h"
#include "cpu/gemm.h"
#include "cpu/simd.h"

// The pieces of a blocked GEMM: packed panels and the register tile.
// Both operands are packed into panels [k][width], zero-padded in width, so one packing routine and one tile serve
// every layout: A in panels of kTileRows (padded to whole vectors), B in panels of kTileCols.
namespace st_moe::cpu::ST_MOE_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 14;  // 28 accumulators, 2 vectors of B and the broadcast of A in 32 registers
#else
constexpr int kTileRows = 6;  // 12 accumulators in 16 registers
#endif
constexpr int kTileVectors = 2;

template <class T>
struct TileShape {
  static constexpr int64_t block_k = 2048 / static_cast<int64_t>(sizeof(T));  // a panel of B stays near the core
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int rows = kTileRows, row_width = (kTileRows + lanes - 1) / lanes * lanes;
  static constexpr int cols = kTileVectors * lanes;
};

// Transposes lanes × lanes elements: log2(lanes) rounds of interleaving r[i] with r[i + lanes / 2].
template <class T>
static inline void transpose(typename Simd<T>::V* r) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes;
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> I __attribute__((vector_size(kVectorBytes)));
  I low, high;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    low[i] = (i & 1) * L + i / 2;
    high[i] = low[i] + L / 2;
  }
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
    V t[L];
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; ++i) {
      t[2 * i] = __builtin_shuffle(r[i], r[i + L / 2], low);
      t[2 * i + 1] = __builtin_shuffle(r[i], r[i + L / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) r[i] = t[i];
  }
}

template <class T>
struct PanelSource {  // element(w, k) = data[w_rows(w)·w_stride + k_rows(k)·k_stride]
  const T* data;
  int64_t w_stride, k_stride;
  const int32_t *w_rows, *k_rows;

  const T* at(int64_t w, int64_t k) const {
    return data + (w_rows ? w_rows[w] : w) * w_stride + (k_rows ? k_rows[k] : k) * k_stride;
  }
};

// Elements of one w are contiguous in k: vectors are loaded along k and transposed.
template <class T, int W>
static void pack_along_k(const PanelSource<T>& source, int64_t w0, int64_t width, int64_t k0, int64_t kc, T* out) {
  using S = Simd<T>;
  constexpr int L = S::lanes;
  static const T zeros[TileShape<T>::block_k] = {};
  for (int g = 0; g < W; g += L) {
    const T* row[L];
    for (int i = 0; i < L; ++i) row[i] = g + i < width ? source.at(w0 + g + i, k0) : zeros;
    int64_t k = 0;
    for (; k + L <= kc; k += L) {
      typename S::V r[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) r[i] = S::load(row[i] + k);
      transpose<T>(r);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) S::store(out + (k + i) * W + g, r[i]);
    }
    for (; k < kc; ++k)
      for (int i = 0; i < L; ++i) out[k * W + g + i] = row[i][k];
  }
}

// Elements of one k are contiguous in w.
template <class T, int W>
static void pack_along_w(const PanelSource<T>& source, int64_t w0, int64_t width, int64_t k0, int64_t kc, T* out) {
  using S = Simd<T>;
  for (int64_t k = 0; k < kc; ++k, out += W) {
    const T* in = source.at(w0, k0 + k);
    if (width == W) {
#pragma GCC unroll 8
      for (int g = 0; g < W; g += S::lanes) S::store(out + g, S::load(in + g));
    } else {
      for (int w = 0; w < W; ++w) out[w] = w < width ? in[w] : T(0);
    }
  }
}

// out [kc][W] = elements (w0 …, k0 …); width < W leaves zeros.
template <class T, int W>
static void pack_panel(const PanelSource<T>& source, int64_t w0, int64_t width, int64_t k0, int64_t kc, T* out) {
  if (source.k_stride == 1 && !source.k_rows) return pack_along_k<T, W>(source, w0, width, k0, kc, out);
  if (source.w_stride == 1 && !source.w_rows) return pack_along_w<T, W>(source, w0, width, k0, kc, out);
  for (int64_t k = 0; k < kc; ++k)
    for (int w = 0; w < W; ++w) out[k * W + w] = w < width ? *source.at(w0 + w, k0 + k) : T(0);
}

template <class T>
static void round_panel(T* panel, int64_t count, DType compute) {
  if (compute == DType::bf16)
    for (int64_t i = 0; i < count; ++i) panel[i] = bf16_to_float(float_to_bf16(static_cast<float>(panel[i])));
  if (compute == DType::f16)
    for (int64_t i = 0; i < count; ++i) panel[i] = f16_to_float(float_to_f16(static_cast<float>(panel[i])));
}

template <class T>
struct Tile {
  int64_t kc;
  const T* a;  // panel [kc][row_width]
  const T* b;  // [kc] rows of a whole tile's width, b_stride apart
  int64_t b_stride;
  T* c;
  int64_t c_stride;
  int64_t rows, cols;  // what of the tile is written
  const T* bias;       // of these columns, or null
  bool accumulate;
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

// C tile (+)= Σ_k a[k] ⊗ b[k]. Computes R rows and writes tile.rows of them.
template <class T, int R, int NV>
[[gnu::noinline]] static void tile_kernel(const Tile<T>& tile) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int L = S::lanes;
  V acc[R][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  for (int64_t i = 0; i < tile.rows; ++i) {  // both ends: the rows need not be aligned
    __builtin_prefetch(tile.c + i * tile.c_stride, 1);
    __builtin_prefetch(tile.c + i * tile.c_stride + tile.cols - 1, 1);
  }
  const T *a = tile.a, *b = tile.b;
  const int64_t b_stride = tile.b_stride;
  for (int64_t k = tile.kc; k > 0; --k) {
    V bv[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) bv[j] = S::load(b + j * L);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const V av = S::set(a[i]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] += av * bv[j];
    }
    a += TileShape<T>::row_width;
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
      S::store(c + j * L, value);
    }
  }
}

// The smallest kernel that holds the tile.
template <class T, int NV, int R = kTileRows>
static inline void run_rows(const Tile<T>& tile) {
  if constexpr (R > 2) {
    if (tile.rows <= R - 2) return run_rows<T, NV, R - 2>(tile);
  }
  tile_kernel<T, R, NV>(tile);
}

template <class T>
static inline void run_tile(const Tile<T>& tile) {
  if (tile.cols <= Simd<T>::lanes) return run_rows<T, 1>(tile);
  run_rows<T, kTileVectors>(tile);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
