#pragma once
#include "cpu/amx.h"
#include "cpu/gemm_pack.h"

// The tile of the GEMM by AMX: 2 × 2 of its tiles. The panel of B stays in the L1 cache, past which A is loaded. Sums
// start from C and add one step of k after the other, in whole and partial tiles alike, so the bits of an element do
// not depend on where tiles end.
namespace st_moe::cpu::ST_MOE_ISA {

struct AmxPairs {
  using Operand = Bf16Pairs;
  using Configuration = TileConfiguration;
  static constexpr auto store_rounded = MultiplyPairs::store_rounded;
};

// What rounding to bf16 leaves of float32, rounded to bf16; nothing of elements that are bf16, infinite or not a
// number.
struct Bf16Rest {
  using Element = float;
  using V = Simd<float>::V;
  static constexpr int k_pack = 2;
  static constexpr bool exact = false, low_in_place = false;

  static inline V along_k(const float* p) { return along_k(_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)); }
  static inline Lane128<float>::V lane128(const float* p) {
    return reinterpret_cast<Lane128<float>::V>(
        _mm256_cvtneps_pbh(_mm512_castps512_ps256(rest(_mm512_castps256_ps512(_mm256_loadu_ps(p))))));
  }
  static inline V across(const float* p, const float* next) {
    return Bf16Pairs::interleaved(reinterpret_cast<__m512i>(along_k(_mm512_loadu_ps(p), _mm512_loadu_ps(next))));
  }
  static inline V along_k(const uint16_t*) { return V{}; }
  static inline V across(const uint16_t*, const uint16_t*) { return V{}; }

 private:
  static inline V along_k(__m512 first, __m512 second) {
    return reinterpret_cast<V>(_mm512_cvtne2ps_pbh(rest(second), rest(first)));
  }
  static inline __m512 rest(__m512 x) {
    const __m512i high = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
    const __m512 left = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
    const __m512i infinity = _mm512_set1_epi32(0x7f800000);
    const __mmask16 finite = _mm512_cmplt_epi32_mask(_mm512_and_si512(_mm512_castps_si512(left), infinity), infinity);
    return _mm512_maskz_mov_ps(finite, left);
  }
};

// Float32 as a sum of two bf16. Of the four products of two sums, that of both rests is left out.
struct Bf16Sums : Bf16Pairs {
  static constexpr bool low_in_place = false;
  using Leading = Bf16Pairs;
  using Rest = Bf16Rest;
};

struct AmxSums {
  using Operand = Bf16Sums;
  using Configuration = TileConfiguration;
};

template <int M>
static inline void load_a(const float* a, int64_t stride) {
  tile_load_past_l1<4>(a, stride);
  if constexpr (M > 1) tile_load_past_l1<5>(a + kAmxRows * stride, stride);
}

template <int N>
static inline void load_b(const float* b) {
  constexpr int64_t stride = TileShape<float>::cols;
  tile_load<6>(b, stride);
  if constexpr (N > 1) tile_load<7>(b + kAmxRows, stride);
}

template <int M, int N>
static inline void multiply() {
  tile_multiply<0, 4, 6>();
  if constexpr (N > 1) tile_multiply<1, 4, 7>();
  if constexpr (M > 1) tile_multiply<2, 5, 6>();
  if constexpr (M > 1 && N > 1) tile_multiply<3, 5, 7>();
}

// c [16·M, 16·N] (+)= A · B
template <class Math, int M, int N>
[[gnu::noinline]] static void amx_kernel(const Tile<float>& tile, float* c, int64_t c_stride) {
  constexpr int64_t b_stride = TileShape<float>::cols, half = kAmxRows;
  constexpr bool sums = kParts<typename Math::Operand> == 2;
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
    load_b<N>(b);
    if constexpr (sums) {  // an order in which no tile is loaded twice
      load_a<M>(a + tile.packs, tile.a_stride);
      multiply<M, N>();
    }
    load_a<M>(a, tile.a_stride);
    multiply<M, N>();
    if constexpr (sums) {
      load_b<N>(b + tile.packs * b_stride);
      multiply<M, N>();
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
template <class Math>
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
    amx_kernel<Math, 2, 2>(tile, sums, width);
  else if (tall)
    amx_kernel<Math, 2, 1>(tile, sums, width);
  else if (wide)
    amx_kernel<Math, 1, 2>(tile, sums, width);
  else
    amx_kernel<Math, 1, 1>(tile, sums, width);
  const auto biased = [&](const float* sum, int64_t j, int64_t n) {
    const S::V value = S::load(sum);
    return tile.bias ? value + S::load_first(tile.bias + j, n) : value;
  };
  if constexpr (StoresRounded<Math>)
    if (tile.low) {
      constexpr int64_t L = S::lanes;
      for (int64_t i = 0; i < tile.rows; ++i) {
        const float* sum = sums + i * width;
        Math::store_rounded(tile.low + i * tile.low_stride, biased(sum, 0, L), biased(sum + L, L, L));
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

template <class Math>
static inline void run_amx_tile(const Tile<float>& tile) {
  using Shape = TileShape<float>;
  const bool whole = tile.rows == Shape::rows && tile.cols == Shape::cols;
  if (whole && !tile.bias && !tile.low && !tile.stream)
    amx_kernel<Math, 2, 2>(tile, tile.c, tile.c_stride);
  else
    run_buffered<Math>(tile);
}

template <>
inline void run_tile<AmxPairs>(const Tile<float>& tile) {
  run_amx_tile<AmxPairs>(tile);
}
template <>
inline void run_tile<AmxSums>(const Tile<float>& tile) {
  run_amx_tile<AmxSums>(tile);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
