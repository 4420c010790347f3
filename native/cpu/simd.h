#pragma once
#include "cpu/kernel.h"
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <arm_neon.h>
#endif

// Vectors of the compiler's extension: one source for every width.
namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
struct Simd {
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));

  static inline V load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline void store(T* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  // The first n lanes, none to all; the rest are zeros.
  static inline V load_first(const T* p, int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return reinterpret_cast<V>(_mm512_maskz_loadu_ps((1u << n) - 1, p));
    else
      return reinterpret_cast<V>(_mm512_maskz_loadu_pd((1u << n) - 1, p));
#else
    T lane[lanes] = {};
    for (int64_t i = 0; i < n; ++i) lane[i] = p[i];
    return load(lane);
#endif
  }
  static inline void store_first(T* p, V v, int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      _mm512_mask_storeu_ps(p, (1u << n) - 1, reinterpret_cast<__m512>(v));
    else
      _mm512_mask_storeu_pd(p, (1u << n) - 1, reinterpret_cast<__m512d>(v));
#else
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
  }
  // Bypasses the caches; p is aligned to a vector. Other threads see it after stream_fence().
  static inline void stream(T* p, V v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#else
    store(p, v);
#endif
  }
  static inline V set(T v) { return v - V{}; }  // unlike v + 0, folds to a broadcast
  static inline T sum(V v) {                    // pairwise, fixed order
    T lane[lanes];
    store(lane, v);
    for (int width = lanes / 2; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
  }
};

static inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// <a, b>
template <class T>
static inline T dot(const T* a, const T* b, int64_t n) {
  using S = Simd<T>;
  typename S::V s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * S::lanes <= n; i += 4 * S::lanes) {
    s0 += S::load(a + i) * S::load(b + i);
    s1 += S::load(a + i + S::lanes) * S::load(b + i + S::lanes);
    s2 += S::load(a + i + 2 * S::lanes) * S::load(b + i + 2 * S::lanes);
    s3 += S::load(a + i + 3 * S::lanes) * S::load(b + i + 3 * S::lanes);
  }
  for (; i + S::lanes <= n; i += S::lanes) s0 += S::load(a + i) * S::load(b + i);
  T tail = 0;
  for (; i < n; ++i) tail += a[i] * b[i];
  return S::sum((s0 + s1) + (s2 + s3)) + tail;
}

// Σ a
template <class T>
static inline T sum(const T* a, int64_t n) {
  using S = Simd<T>;
  typename S::V s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * S::lanes <= n; i += 4 * S::lanes) {
    s0 += S::load(a + i);
    s1 += S::load(a + i + S::lanes);
    s2 += S::load(a + i + 2 * S::lanes);
    s3 += S::load(a + i + 3 * S::lanes);
  }
  for (; i + S::lanes <= n; i += S::lanes) s0 += S::load(a + i);
  T tail = 0;
  for (; i < n; ++i) tail += a[i];
  return S::sum((s0 + s1) + (s2 + s3)) + tail;
}

// y += factor · x
template <class T>
static inline void axpy(T factor, const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

}  // namespace st_moe::cpu::ST_MOE_ISA
