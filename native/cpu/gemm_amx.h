#pragma once
#include "cpu/amx.h"
#include "cpu/gemm_tile.h"

// The tile of the GEMM by AMX: 2 × 2 of its tiles. The panel of B stays in the L1 cache, past which A is loaded. Sums
// start from C and add one step of k after the other, in whole and partial tiles alike, so the bits of an element do
// not depend on where tiles end.
namespace st_moe::cpu::ST_MOE_ISA {

struct AmxPairs {
  using Configuration = TileConfiguration;
  static constexpr auto store_rounded = MultiplyPairs::store_rounded;
};

// c [16·M, 16·N] (+)= A · B
template <int M, int N>
[[gnu::noinline]] static void amx_kernel(const Tile<float>& tile, float* c, int64_t c_stride) {
  constexpr int64_t b_stride = TileShape<float>::cols, half = kAmxRows;
  float *const right = c + half, *const below = c + half * c_stride, *const last = below + half;
  if (tile.accumulate) {
    tile_load<0>(c, c_stride);
    if constexpr (N > 1) tile_load<1>(right, c_stride);
    if constexpr (M > 1) tile_load<2>(below, c_stride);
    if constexpr (M > 1 && N > 1) tile_load<3>(last, c_stride);
  } else {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  }
  CPrefetch<float> ahead(tile);
  const float *a = tile.a, *b = tile.b;
  for (int64_t left = tile.packs; left > 0; left -= half, a += half, b += half * b_stride) {
    tile_load<6>(b, b_stride);
    if constexpr (N > 1) tile_load<7>(b + half, b_stride);
    tile_load_past_l1<4>(a, tile.a_stride);
    tile_multiply<0, 4, 6>();
    if constexpr (N > 1) tile_multiply<1, 4, 7>();
    if constexpr (M > 1) {
      tile_load_past_l1<5>(a + half * tile.a_stride, tile.a_stride);
      tile_multiply<2, 5, 6>();
      if constexpr (N > 1) tile_multiply<3, 5, 7>();
    }
    ahead.step();
    tile.prefetch->step();
  }
  tile_store<0>(c, c_stride);
  if constexpr (N > 1) tile_store<1>(right, c_stride);
  if constexpr (M > 1) tile_store<2>(below, c_stride);
  if constexpr (M > 1 && N > 1) tile_store<3>(last, c_stride);
}

// Through memory of its own, for a tile that is partial, has a bias, is rounded, or bypasses the caches.
static inline void run_buffered(const Tile<float>& tile) {
  using S = Simd<float>;
  constexpr int64_t width = TileShape<float>::cols;
  alignas(64) float sums[TileShape<float>::rows * width];
  const auto each_vector = [&](auto&& f) {
    for (int64_t i = 0; i < tile.rows; ++i)
      for (int64_t j = 0; j < tile.cols; j += S::lanes)
        f(sums + i * width + j, tile.c + i * tile.c_stride + j, j, min_of<int64_t>(S::lanes, tile.cols - j));
  };
  if (tile.accumulate)
    each_vector([](float* sum, const float* c, int64_t, int64_t n) { S::store(sum, S::load_first(c, n)); });
  const bool tall = tile.rows > kAmxRows, wide = tile.cols > kAmxRows;
  if (tall && wide)
    amx_kernel<2, 2>(tile, sums, width);
  else if (tall)
    amx_kernel<2, 1>(tile, sums, width);
  else if (wide)
    amx_kernel<1, 2>(tile, sums, width);
  else
    amx_kernel<1, 1>(tile, sums, width);
  const auto biased = [&](const float* sum, int64_t j, int64_t n) {
    const S::V value = S::load(sum);
    return tile.bias ? value + S::load_first(tile.bias + j, n) : value;
  };
  if (tile.low) {
    constexpr int64_t L = S::lanes;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const float* sum = sums + i * width;
      AmxPairs::store_rounded(tile.low + i * tile.low_stride, biased(sum, 0, L), biased(sum + L, L, L));
    }
    return;
  }
  const bool stream = tile.stream && tile.cols == width;
  each_vector([&](const float* sum, float* c, int64_t j, int64_t n) {
    const S::V value = biased(sum, j, n);
    if (stream)
      S::stream(c, value);
    else
      S::store_first(c, value, n);
  });
}

template <>
inline void run_tile<AmxPairs>(const Tile<float>& tile) {
  using Shape = TileShape<float>;
  const bool whole = tile.rows == Shape::rows && tile.cols == Shape::cols;
  if (whole && !tile.bias && !tile.low && !tile.stream)
    amx_kernel<2, 2>(tile, tile.c, tile.c_stride);
  else
    run_buffered(tile);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
