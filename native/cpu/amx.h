#pragma once
#include <cstring>

#include "cpu/simd.h"

// The instructions of AMX on tiles of 16 rows of 64 bytes, and the same in vectors for tests on other processors
// (ST_MOE_AMX_EMULATED), with the same bits. As inline assembly, since GCC's intrinsics take literal tile numbers only.
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int kAmxRows = 16, kAmxTiles = 8;

#if defined(ST_MOE_AMX_EMULATED)

static thread_local uint32_t amx_tile[kAmxTiles][kAmxRows][kAmxRows];

template <int t>
static inline void tile_zero() {
  memset(amx_tile[t], 0, sizeof amx_tile[t]);
}

template <int t>
static inline void tile_load(const float* p, int64_t stride) {
  for (int i = 0; i < kAmxRows; ++i) memcpy(amx_tile[t][i], p + i * stride, sizeof amx_tile[t][i]);
}

template <int t>
static inline void tile_load_past_l1(const float* p, int64_t stride) {
  tile_load<t>(p, stride);
}

template <int t>
static inline void tile_store(float* p, int64_t stride) {
  for (int i = 0; i < kAmxRows; ++i) memcpy(p + i * stride, amx_tile[t][i], sizeof amx_tile[t][i]);
}

// Subnormal numbers become zeros of their sign.
static inline __m512 flushed(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __mmask16 flush = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  return _mm512_castsi512_ps(_mm512_mask_and_epi32(bits, flush, bits, _mm512_set1_epi32(INT32_MIN)));
}

// tile c [16, 16] of float32 += tile a [16, 16 packs] · tile b [16 packs, 16]: the even and the odd elements of k in a
// chain of fused multiply-adds each.
template <int c, int a, int b>
static inline void tile_multiply() {
  const auto even = [](__m512i packs) { return flushed(_mm512_castsi512_ps(_mm512_slli_epi32(packs, 16))); };
  const auto odd = [](__m512i packs) {
    return flushed(_mm512_castsi512_ps(_mm512_and_si512(packs, _mm512_set1_epi32(INT32_MIN >> 15))));
  };
  for (int i = 0; i < kAmxRows; ++i) {
    __m512 evens = _mm512_setzero_ps(), odds = evens;
    for (int k = 0; k < kAmxRows; ++k) {
      const __m512i x = _mm512_set1_epi32(static_cast<int32_t>(amx_tile[a][i][k])),
                    y = _mm512_loadu_si512(amx_tile[b][k]);
      evens = flushed(_mm512_fmadd_ps(even(x), even(y), evens));
      odds = flushed(_mm512_fmadd_ps(odd(x), odd(y), odds));
    }
    const __m512 sum = flushed(_mm512_loadu_ps(amx_tile[c][i])), more = flushed(_mm512_add_ps(evens, odds));
    _mm512_storeu_ps(amx_tile[c][i], flushed(_mm512_add_ps(sum, more)));
  }
}

struct TileConfiguration {};

#else

template <int t>
static inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(t));
}

template <int t>
static inline void tile_load(const float* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride * 4), "i"(t) : "memory");
}

// Does not displace in the L1 cache what is read sooner again.
template <int t>
static inline void tile_load_past_l1(const float* p, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride * 4), "i"(t) : "memory");
}

template <int t>
static inline void tile_store(float* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride * 4), "i"(t) : "memory");
}

template <int c, int a, int b>
static inline void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

// The shapes of the tiles, while a thread uses them: other libraries of the process may have theirs, and tiles that are
// in use make its context switches slower.
struct TileConfiguration {
  TileConfiguration() {
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shapes{1, 0, {}, {}, {}};
    for (int t = 0; t < kAmxTiles; ++t) shapes.row_bytes[t] = 64, shapes.rows[t] = kAmxRows;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~TileConfiguration() { asm volatile("tilerelease"); }
  TileConfiguration(const TileConfiguration&) = delete;
  TileConfiguration& operator=(const TileConfiguration&) = delete;
};

#endif

}  // namespace st_moe::cpu::ST_MOE_ISA
