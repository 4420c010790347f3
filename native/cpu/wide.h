#pragma once
#include "cpu/simd.h"

// Sums over a row, accumulated in double for every dtype. The order depends only on the length.
namespace st_moe::cpu::ST_MOE_ISA {

// Elements per task of an element-wise op: less work than this stays on the calling thread.
constexpr int64_t kElementBlock = 16384;

template <class T>
struct Wide {  // double lanes, loaded from T
  static constexpr int lanes = kVectorBytes / 8;
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef T Narrow __attribute__((vector_size(lanes * sizeof(T)), aligned(alignof(T)), may_alias));

  static inline V load(const T* p) { return __builtin_convertvector(*reinterpret_cast<const Narrow*>(p), V); }
};

// Σ_i f(at), where at(p) is p[i] as a double, or a vector of them.
template <class T, class F>
static inline double wide_reduce(int64_t n, F&& f) {
  using W = Wide<T>;
  typename W::V s0{}, s1{}, s2{}, s3{};
  const auto vector_at = [](int64_t i) { return [i](const T* p) { return W::load(p + i); }; };
  int64_t i = 0;
  for (; i + 4 * W::lanes <= n; i += 4 * W::lanes) {
    s0 += f(vector_at(i));
    s1 += f(vector_at(i + W::lanes));
    s2 += f(vector_at(i + 2 * W::lanes));
    s3 += f(vector_at(i + 3 * W::lanes));
  }
  for (; i + W::lanes <= n; i += W::lanes) s0 += f(vector_at(i));
  double tail = 0;
  for (; i < n; ++i) tail += f([i](const T* p) { return static_cast<double>(p[i]); });
  return Simd<double>::sum((s0 + s1) + (s2 + s3)) + tail;
}

template <class T>
static inline double wide_sum(const T* x, int64_t n) {
  return wide_reduce<T>(n, [&](auto at) { return at(x); });
}

template <class T>
static inline double wide_dot(const T* x, const T* y, int64_t n) {
  return wide_reduce<T>(n, [&](auto at) { return at(x) * at(y); });
}

// Sums over rows [T] of many columns: splits rows into at most kRowBlocks blocks by T alone, so that the summation
// order is fixed and the partial sums stay small.
constexpr int64_t kRowBlocks = 32;
static inline int64_t row_block(int64_t rows) {
  return max_of<int64_t>(16, ceil_div(rows, kRowBlocks));
}

// out [D] = Σ_b partial [blocks, D], in order.
template <class T>
static inline void add_partials(const double* partial, int64_t blocks, int64_t D, T* out) {
  for (int64_t j = 0; j < D; ++j) {
    double total = 0;
    for (int64_t b = 0; b < blocks; ++b) total += partial[b * D + j];
    out[j] = static_cast<T>(total);
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA
