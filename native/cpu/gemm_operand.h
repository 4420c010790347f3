#pragma once
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/element_types.h"
#include "cpu/simd.h"

// The elements of packed panels. Each lane holds one pack: an element, or two neighbors in k that share its bits
// (VNNI). An operand type defines how packs are built from elements in memory:
//   k_pack         elements of k in a pack
//   along_k(p)     a vector of packs of one row, from p[0 … lanes · k_pack)
//   lane128(p)     16 bytes of the same
//   across(p, q)   a vector of packs of one k, from rows k (p) and k + 1 (q; read if k_pack is 2)
// and for a low-precision type along_k, lane128 and across of elements that have its 16 bits already, and
//   widen, round   rows of those to float32 and back
//   dtype          that type
//   low_in_place   whether rows of those are packs as they are
namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
struct Lane128 {
  static constexpr int size = 16 / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(16)));
  typedef T Unaligned __attribute__((vector_size(16), aligned(alignof(T)), may_alias));

  static inline V load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
};

// Integers as float32.
static inline Simd<float>::V from_int8(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<Simd<float>::V>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)));
#elif defined(__AVX2__)
  const __m128i levels = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<Simd<float>::V>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels)));
#else
  float wide[Simd<float>::lanes];
  for (int i = 0; i < Simd<float>::lanes; ++i) wide[i] = static_cast<float>(p[i]);
  return Simd<float>::load(wide);
#endif
}

// Unrounded elements.
template <class T>
struct Exact {
  using Element = T;
  static constexpr int k_pack = 1;
  static constexpr bool exact = true, low_in_place = false;

  static inline typename Simd<T>::V along_k(const T* p) { return Simd<T>::load(p); }
  static inline typename Lane128<T>::V lane128(const T* p) { return Lane128<T>::load(p); }
  static inline typename Simd<T>::V across(const T* p, const T*) { return Simd<T>::load(p); }
};

// Elements rounded to a low-precision type, to nearest even, and stored as float32.
template <DType low_dtype>
struct Rounded {
  using Element = float;
  static constexpr DType dtype = low_dtype;
  using Low = std::conditional_t<dtype == DType::bf16, Bf16, F16>;
  static constexpr int k_pack = 1;
  static constexpr bool exact = false, low_in_place = false;

  template <class V>
  static inline V rounded(V v) {
    typedef uint32_t U __attribute__((vector_size(sizeof(V))));
    const U bits = reinterpret_cast<U>(v), sign = bits & 0x80000000u, magnitude = bits ^ sign;
    U rounded_bits;
    if constexpr (dtype == DType::bf16) {
      rounded_bits = (magnitude + 0x7fffu + (magnitude >> 16 & 1u)) & 0xffff0000u;
    } else {
      const U normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u)) & 0xffffe000u;
      const U finite = normal < 0x47800000u ? normal : U{} + 0x7f800000u;  // 65536 and more are infinite
      const V subnormal = (reinterpret_cast<V>(magnitude) + 0.5f) - 0.5f;  // multiples of 2^-24: the adder rounds
      rounded_bits = magnitude < 0x38800000u ? reinterpret_cast<U>(subnormal) : finite;
    }
    return v == v ? reinterpret_cast<V>(rounded_bits | sign) : v;  // keeps NaN
  }
  static inline Simd<float>::V along_k(const float* p) { return rounded(Simd<float>::load(p)); }
  static inline Lane128<float>::V lane128(const float* p) { return rounded(Lane128<float>::load(p)); }
  static inline Simd<float>::V across(const float* p, const float*) { return along_k(p); }

  [[gnu::noinline]] static void widen(const uint16_t* __restrict from, float* __restrict to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = Low::load(from[i]);
  }
  [[gnu::noinline]] static void round(const float* __restrict from, uint16_t* __restrict to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = Low::store(from[i]);
  }
  static inline Simd<float>::V along_k(const uint16_t* p) {
    using S = Simd<float>;
    if constexpr (dtype == DType::bf16) {
      typedef uint16_t Bits __attribute__((vector_size(S::lanes * 2)));
      typedef uint32_t Wide __attribute__((vector_size(S::lanes * 4)));
      Bits bits;
      memcpy(&bits, p, sizeof bits);
      return reinterpret_cast<S::V>(__builtin_convertvector(bits, Wide) << 16);
    }
#if defined(__AVX512F__)
    return reinterpret_cast<S::V>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
    float lane[S::lanes];
    widen(p, lane, S::lanes);
    return S::load(lane);
#endif
  }
  static inline Lane128<float>::V lane128(const uint16_t* p) {
    float lane[Lane128<float>::size];
    for (int i = 0; i < Lane128<float>::size; ++i) lane[i] = Low::load(p[i]);
    return Lane128<float>::load(lane);
  }
  static inline Simd<float>::V across(const uint16_t* p, const uint16_t*) { return along_k(p); }
};

// add: acc + a · b per lane.
// add_from: the same with `a` one pack in memory, in one instruction; where there is one.
// store_rounded: two vectors as bf16, as Operand::round does; only where the tile does that itself.
// Configuration: what a thread sets up for the time of a task.
template <class T>
struct Multiply {
  struct Configuration {};
  using V = typename Simd<T>::V;
  static inline V broadcast(const T* a) { return Simd<T>::set(*a); }
#if defined(__AVX512F__)
  // Rounded once in builds that do not contract expressions, too: both have the same bits.
  static inline V add(V acc, V a, V b) {
    if constexpr (sizeof(T) == 4)
      return reinterpret_cast<V>(
          _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(acc)));
    else
      return reinterpret_cast<V>(
          _mm512_fmadd_pd(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), reinterpret_cast<__m512d>(acc)));
  }
  static inline V add_from(V acc, const T* a, V b) {
    if constexpr (sizeof(T) == 4)
      asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*a));
    else
      asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*a));
    return acc;
  }
#else
  static inline V add(V acc, V a, V b) { return acc + a * b; }
#endif
};

#if defined(__AVX512BF16__)
// Two bf16 neighbors in k, for the dot-product instruction, which treats subnormals as zero.
struct Bf16Pairs {
  using Element = float;
  using V = Simd<float>::V;
  static constexpr int k_pack = 2;
  static constexpr DType dtype = DType::bf16;
  static constexpr bool exact = false, low_in_place = true;

  static inline V along_k(const float* p) {
    return reinterpret_cast<V>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p)));
  }
  static inline Lane128<float>::V lane128(const float* p) {
    return reinterpret_cast<Lane128<float>::V>(_mm256_cvtneps_pbh(_mm256_loadu_ps(p)));
  }
  static inline V across(const float* p, const float* next) {
    return interleaved(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(next), _mm512_loadu_ps(p))));
  }

  static inline V along_k(const uint16_t* p) { return reinterpret_cast<V>(_mm512_loadu_si512(p)); }
  static inline Lane128<float>::V lane128(const uint16_t* p) {
    return reinterpret_cast<Lane128<float>::V>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static inline V across(const uint16_t* p, const uint16_t* next) {
    const auto row = [](const uint16_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); };
    return interleaved(_mm512_inserti64x4(_mm512_castsi256_si512(row(p)), row(next), 1));
  }

  static void widen(const uint16_t* from, float* to, int64_t count) {
    const auto wide = [](__m256i packs) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(packs), 16); };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
      _mm512_storeu_si512(to + i, wide(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
    const __mmask16 rest = first(count - i);
    _mm512_mask_storeu_epi32(to + i, rest, wide(_mm256_maskz_loadu_epi16(rest, from + i)));
  }
  static void round(const float* from, uint16_t* to, int64_t count) {
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(along_k(from + i)));
    for (; i < count; i += 16) {
      const __mmask16 rest = first(min_of<int64_t>(count - i, 16));
      const __m256bh packs = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(rest, from + i));
      _mm256_mask_storeu_epi16(to + i, rest, reinterpret_cast<__m256i>(packs));
    }
  }

  // 16 elements of k, then 16 of k + 1.
  static inline V interleaved(__m512i rows) {
    alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return reinterpret_cast<V>(_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), rows));
  }

 private:
  static inline __mmask16 first(int64_t count) { return static_cast<__mmask16>((1 << count) - 1); }
};

struct MultiplyPairs {
  struct Configuration {};
  using V = Simd<float>::V;
  static inline V broadcast(const float* a) {
    int32_t bits;
    memcpy(&bits, a, sizeof bits);
    return reinterpret_cast<V>(_mm512_set1_epi32(bits));
  }
  static inline V add(V acc, V a, V b) {
    return reinterpret_cast<V>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
  static inline V add_from(V acc, const float* a, V b) {
    typedef int32_t Pair __attribute__((may_alias));  // the memory may have been written as 16-bit elements
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*reinterpret_cast<const Pair*>(a)));
    return acc;
  }
  static inline void store_rounded(uint16_t* to, V low, V high) {
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(
                                _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low))));
  }
};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// The same for BFDOT.
struct Bf16Pairs {
  using Element = float;
  using V = Simd<float>::V;
  static constexpr int k_pack = 2;
  static constexpr DType dtype = DType::bf16;
  static constexpr bool exact = false, low_in_place = true;

  static inline V along_k(const float* p) { return rounded(p, p + 4); }
  static inline Lane128<float>::V lane128(const float* p) { return rounded(p, p + 4); }
  static inline V across(const float* p, const float* next) {
    const uint16x8_t rows = reinterpret_cast<uint16x8_t>(rounded(p, next));
    return interleaved(vget_low_u16(rows), vget_high_u16(rows));
  }

  static inline V along_k(const uint16_t* p) { return reinterpret_cast<V>(vld1q_u16(p)); }
  static inline V lane128(const uint16_t* p) { return along_k(p); }
  static inline V across(const uint16_t* p, const uint16_t* next) { return interleaved(vld1_u16(p), vld1_u16(next)); }

  static constexpr auto widen = Rounded<DType::bf16>::widen;
  static constexpr auto round = Rounded<DType::bf16>::round;

 private:
  static inline V rounded(const float* low, const float* high) {
    const bfloat16x8_t lower = vcvtq_low_bf16_f32(vld1q_f32(low));
    return reinterpret_cast<V>(vcvtq_high_bf16_f32(lower, vld1q_f32(high)));
  }
  static inline V interleaved(uint16x4_t even, uint16x4_t odd) {
    return reinterpret_cast<V>(vcombine_u16(vzip1_u16(even, odd), vzip2_u16(even, odd)));
  }
};

struct MultiplyPairs {
  struct Configuration {};
  using V = Simd<float>::V;
  static inline V broadcast(const float* a) { return V{*a}; }
  // The pack from lane 0. Clang's intrinsic for that copies it to all lanes first.
  static inline V add(V acc, V a, V b) {
    asm("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(acc) : "w"(b), "w"(a));
    return acc;
  }
};
#endif

// ---- transposition ----------------------------------------------------------------------------------------------

// One vector from its 128-bit lanes.
template <class T>
static inline typename Simd<T>::V join(const typename Lane128<T>::V* lane) {
#if defined(__AVX512F__)
  __m512 v = _mm512_castps128_ps512(reinterpret_cast<__m128>(lane[0]));
  v = _mm512_insertf32x4(v, reinterpret_cast<__m128>(lane[1]), 1);
  v = _mm512_insertf32x4(v, reinterpret_cast<__m128>(lane[2]), 2);
  return reinterpret_cast<typename Simd<T>::V>(_mm512_insertf32x4(v, reinterpret_cast<__m128>(lane[3]), 3));
#elif defined(__AVX2__)
  const __m256 v = _mm256_castps128_ps256(reinterpret_cast<__m128>(lane[0]));
  return reinterpret_cast<typename Simd<T>::V>(_mm256_insertf128_ps(v, reinterpret_cast<__m128>(lane[1]), 1));
#else
  return lane[0];
#endif
}

// Interleaves, in each 128-bit lane, the lower or upper halves of a and b.
template <class T, bool upper, int... I>
static inline typename Simd<T>::V interleave(typename Simd<T>::V a, typename Simd<T>::V b,
                                             std::integer_sequence<int, I...>) {
  constexpr int U = Lane128<T>::size, L = Simd<T>::lanes;
  return __builtin_shufflevector(a, b, ((I % 2) * L + I / U * U + (upper ? U / 2 : 0) + I % U / 2)...);
}

// Transposes the packs of U vectors within each 128-bit lane.
template <class T>
static inline void transpose_lanes128(typename Simd<T>::V* r) {
  using V = typename Simd<T>::V;
  using Lanes = std::make_integer_sequence<int, Simd<T>::lanes>;
  if constexpr (Lane128<T>::size == 2) {
    const V a = r[0], b = r[1];
    r[0] = interleave<T, false>(a, b, Lanes());
    r[1] = interleave<T, true>(a, b, Lanes());
  } else {
    using Pair = typename Simd<double>::V;  // moves two packs at a time
    using Pairs = std::make_integer_sequence<int, Simd<double>::lanes>;
    const Pair low01 = reinterpret_cast<Pair>(interleave<T, false>(r[0], r[1], Lanes()));
    const Pair high01 = reinterpret_cast<Pair>(interleave<T, true>(r[0], r[1], Lanes()));
    const Pair low23 = reinterpret_cast<Pair>(interleave<T, false>(r[2], r[3], Lanes()));
    const Pair high23 = reinterpret_cast<Pair>(interleave<T, true>(r[2], r[3], Lanes()));
    r[0] = reinterpret_cast<V>(interleave<double, false>(low01, low23, Pairs()));
    r[1] = reinterpret_cast<V>(interleave<double, true>(low01, low23, Pairs()));
    r[2] = reinterpret_cast<V>(interleave<double, false>(high01, high23, Pairs()));
    r[3] = reinterpret_cast<V>(interleave<double, true>(high01, high23, Pairs()));
  }
}

#if defined(__AVX512BF16__)
// Transposes the packs of 16 vectors.
static inline void transpose_packs(Simd<float>::V* r) {
  using V = Simd<float>::V;
  for (int g = 0; g < 16; g += 4) transpose_lanes128<float>(r + g);
  V rows[16];
  for (int i = 0; i < 4; ++i) {  // lane l of r[i], r[i + 4], r[i + 8], r[i + 12] → row 4·l + i
    const auto lanes = [&](int j) { return reinterpret_cast<__m512i>(r[i + j]); };
    const __m512i even01 = _mm512_shuffle_i32x4(lanes(0), lanes(4), 0x88);
    const __m512i even23 = _mm512_shuffle_i32x4(lanes(8), lanes(12), 0x88);
    const __m512i odd01 = _mm512_shuffle_i32x4(lanes(0), lanes(4), 0xdd);
    const __m512i odd23 = _mm512_shuffle_i32x4(lanes(8), lanes(12), 0xdd);
    rows[i] = reinterpret_cast<V>(_mm512_shuffle_i32x4(even01, even23, 0x88));
    rows[i + 4] = reinterpret_cast<V>(_mm512_shuffle_i32x4(odd01, odd23, 0x88));
    rows[i + 8] = reinterpret_cast<V>(_mm512_shuffle_i32x4(even01, even23, 0xdd));
    rows[i + 12] = reinterpret_cast<V>(_mm512_shuffle_i32x4(odd01, odd23, 0xdd));
  }
  memcpy(r, rows, sizeof rows);
}
#endif

}  // namespace st_moe::cpu::ST_MOE_ISA
