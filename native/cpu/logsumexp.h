#pragma once
#include <cmath>

#include "core/formulas.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// The maximum of x [n], ignoring NaN; −inf if nothing is left.
template <class T>
static inline T row_max(const T* x, int64_t n) {
  using S = Simd<T>;
  typename S::V m0 = S::set(-static_cast<T>(INFINITY)), m1 = m0;
  int64_t i = 0;
  for (; i + 2 * S::lanes <= n; i += 2 * S::lanes) {
    const typename S::V a = S::load(x + i), b = S::load(x + i + S::lanes);
    m0 = a > m0 ? a : m0;
    m1 = b > m1 ? b : m1;
  }
  for (; i + S::lanes <= n; i += S::lanes) {
    const typename S::V a = S::load(x + i);
    m0 = a > m0 ? a : m0;
  }
  m0 = m1 > m0 ? m1 : m0;
  T lane[S::lanes];
  S::store(lane, m0);
  for (int width = S::lanes / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) lane[j] = lane[j + width] > lane[j] ? lane[j + width] : lane[j];
  T best = lane[0];
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// log Σ e^x over x [n]. NaN if the row contains NaN or +inf, or only −inf. In softmax.cc.
template <class T>
double logsumexp(const T* x, int64_t n);

// y [V] = softmax(x), y may be x. In softmax.cc.
template <class T>
void softmax_row(const T* x, T* y, int64_t V);

}  // namespace st_moe::cpu::ST_MOE_ISA
