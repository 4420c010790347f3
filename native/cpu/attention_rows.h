#pragma once
#include <cmath>

#include "cpu/simd.h"

// Sums over the keys of one query.
namespace st_moe::cpu::ST_MOE_ISA {

// NV vectors of columns of add_rows
template <class T, int NV>
static inline void add_columns(const T* s, int64_t s_stride, const T* z, int64_t z_stride, int64_t n, T* out) {
  using S = Simd<T>;
  typename S::V acc[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) acc[v] = S::load(out + v * S::lanes);
  for (int64_t j = 0; j < n; ++j) {
    const typename S::V factor = S::set(s[j * s_stride]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[v] += factor * S::load(z + j * z_stride + v * S::lanes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) S::store(out + v * S::lanes, acc[v]);
}

// out [d] += Σ_j s[j · s_stride] · z[j · z_stride …] over n rows of z
template <class T>
static void add_rows(const T* s, int64_t s_stride, const T* z, int64_t z_stride, int64_t n, T* out, int64_t d) {
  constexpr int64_t L = Simd<T>::lanes;
  int64_t c = 0;
  for (; c + 4 * L <= d; c += 4 * L) add_columns<T, 4>(s, s_stride, z + c, z_stride, n, out + c);
  for (; c + 2 * L <= d; c += 2 * L) add_columns<T, 2>(s, s_stride, z + c, z_stride, n, out + c);
  for (; c + L <= d; c += L) add_columns<T, 1>(s, s_stride, z + c, z_stride, n, out + c);
  for (; c < d; ++c)
    for (int64_t j = 0; j < n; ++j) out[c] += s[j * s_stride] * z[j * z_stride + c];
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
