#pragma once
#include <cmath>

#include "cpu/simd.h"

// Sums of rows by factors, and the scores of one query.
namespace st_moe::cpu::ST_MOE_ISA {

// Sums at a time: enough to hide the latency of a multiply-add, and no more than there are registers for.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kSums = 4;
#else
constexpr int64_t kSums = 2;
#endif

// Factors s[r · next + j · stride] of row j of z in sum r.
template <class T>
struct Factors {
  const T* s;
  int64_t next, stride;
};

// NV vectors of columns of R sums
template <class T, int64_t R, int NV>
static inline void add_columns(const Factors<T>& factors, const T* z, int64_t z_stride, int64_t n, T* out,
                               int64_t out_stride) {
  using S = Simd<T>;
  typename S::V acc[R][NV];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = S::load(out + r * out_stride + v * S::lanes);
  for (int64_t j = 0; j < n; ++j) {
    typename S::V row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = S::load(z + j * z_stride + v * S::lanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const typename S::V factor = S::set(factors.s[r * factors.next + j * factors.stride]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += factor * row[v];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) S::store(out + r * out_stride + v * S::lanes, acc[r][v]);
}

// R sums
template <int64_t R, class T>
static void add_together(const Factors<T>& factors, const T* z, int64_t z_stride, int64_t n, T* out, int64_t out_stride,
                         int64_t d) {
  constexpr int64_t L = Simd<T>::lanes;
  int64_t c = 0;
  for (; c + 4 * L <= d; c += 4 * L) add_columns<T, R, 4>(factors, z + c, z_stride, n, out + c, out_stride);
  for (; c + 2 * L <= d; c += 2 * L) add_columns<T, R, 2>(factors, z + c, z_stride, n, out + c, out_stride);
  for (; c + L <= d; c += L) add_columns<T, R, 1>(factors, z + c, z_stride, n, out + c, out_stride);
  for (; c < d; ++c)
    for (int r = 0; r < R; ++r)
      for (int64_t j = 0; j < n; ++j)
        out[r * out_stride + c] += factors.s[r * factors.next + j * factors.stride] * z[j * z_stride + c];
}

// out [sums, d] += Σ_j factor · z[j · z_stride …] over n rows of z
template <class T>
static void add_rows(const Factors<T>& factors, int64_t sums, const T* z, int64_t z_stride, int64_t n, T* out,
                     int64_t out_stride, int64_t d) {
  if (sums == kSums) return add_together<kSums>(factors, z, z_stride, n, out, out_stride, d);
  for (int64_t r = 0; r < sums; ++r)
    add_together<1>({factors.s + r * factors.next, 0, factors.stride}, z, z_stride, n, out + r * out_stride, 0, d);
}

// Scales s in place. May ignore a NaN, which reappears in the sum of the exponentials.
template <class T>
static T scale_and_max(T* s, int64_t n, T factor) {
  using S = Simd<T>;
  T largest = -INFINITY;
  typename S::V most = S::set(largest);
  int64_t i = 0;
  for (; i + S::lanes <= n; i += S::lanes) {
    const typename S::V v = S::load(s + i) * factor;
    S::store(s + i, v);
    most = v > most ? v : most;
  }
  for (; i < n; ++i) {
    s[i] *= factor;
    largest = max_of(largest, s[i]);
  }
  for (int lane = 0; lane < S::lanes; ++lane) largest = max_of<T>(largest, most[lane]);
  return largest;
}

}  // namespace st_moe::cpu::ST_MOE_ISA
