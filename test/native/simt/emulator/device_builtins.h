#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulator/engine.h"

// What kernels call: barriers, collectives of a warp, atomics, and functions of bits and numbers.
namespace simt {

template <class T>
Cell to_cell(T value) {
  static_assert(sizeof(T) <= sizeof(Cell) && std::is_trivially_copyable_v<T>);
  Cell cell{};
  std::memcpy(&cell, &value, sizeof value);
  return cell;
}

template <class T>
T from_cell(Cell cell) {
  T value;
  std::memcpy(&value, &cell, sizeof value);
  return value;
}

static inline bool in_mask(const Exchange& exchange, int lane) { return exchange.mask >> lane & 1; }

static inline void finish_shuffle(Exchange& exchange) {
  for (int l = 0; l < kLanes; ++l) {
    if (!in_mask(exchange, l)) continue;
    const int source = exchange.source[l];
    if (!in_mask(exchange, source)) die("a shuffle reads a lane outside of its mask");
    exchange.out[l] = exchange.in[source];
  }
}

static inline void finish_ballot(Exchange& exchange) {
  unsigned bits = 0;
  for (int l = 0; l < kLanes; ++l)
    if (in_mask(exchange, l) && exchange.source[l]) bits |= 1u << l;
  for (int l = 0; l < kLanes; ++l)
    if (in_mask(exchange, l)) exchange.out[l] = to_cell(bits);
}

static inline void finish_match(Exchange& exchange) {
  for (int l = 0; l < kLanes; ++l) {
    if (!in_mask(exchange, l)) continue;
    unsigned equal = 0;
    for (int other = 0; other < kLanes; ++other)
      if (in_mask(exchange, other) && std::memcmp(&exchange.in[l], &exchange.in[other], sizeof(Cell)) == 0)
        equal |= 1u << other;
    exchange.out[l] = to_cell(equal);
  }
}

template <class T, class Combine>
void finish_reduce(Exchange& exchange) {
  T total{};
  bool first = true;
  for (int l = 0; l < kLanes; ++l) {
    if (!in_mask(exchange, l)) continue;
    const T value = from_cell<T>(exchange.in[l]);
    total = first ? value : Combine()(total, value);
    first = false;
  }
  for (int l = 0; l < kLanes; ++l)
    if (in_mask(exchange, l)) exchange.out[l] = to_cell(total);
}

template <class T>
T shuffle(const char* name, int line, unsigned mask, T value, int source) {
  return from_cell<T>(collective(name, line, mask, false, to_cell(value), source, finish_shuffle));
}

static inline unsigned vote(const char* name, int line, unsigned mask, int predicate) {
  return from_cell<unsigned>(collective(name, line, mask, false, Cell{}, predicate != 0, finish_ballot));
}

static inline int segment(int lane, int width) { return lane & ~(width - 1); }  // first lane of a shuffle's segment

}  // namespace simt

// The last parameter of barriers and collectives is the line of the call, for the reports.

inline void __syncthreads(int line = __builtin_LINE()) {
  simt::barrier("__syncthreads", line, false, simt::Barrier::count);
}
inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
  return simt::barrier("__syncthreads_count", line, predicate != 0, simt::Barrier::count);
}
inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
  return simt::barrier("__syncthreads_and", line, predicate != 0, simt::Barrier::all);
}
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
  return simt::barrier("__syncthreads_or", line, predicate != 0, simt::Barrier::any);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  simt::collective("__syncwarp", line, mask, true, simt::Cell{}, 0, [](simt::Exchange&) {});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const int first = simt::segment(simt::lane(), width);
  return simt::shuffle("__shfl_sync", line, mask, value, first + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  const int lane = simt::lane(), source = lane ^ bits;
  const bool outside = source >= simt::segment(lane, width) + width;
  return simt::shuffle("__shfl_xor_sync", line, mask, value, outside ? lane : source);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  const int lane = simt::lane(), source = lane - static_cast<int>(delta);
  return simt::shuffle("__shfl_up_sync", line, mask, value, source < simt::segment(lane, width) ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  const int lane = simt::lane(), source = lane + static_cast<int>(delta);
  const bool outside = source >= simt::segment(lane, width) + width;
  return simt::shuffle("__shfl_down_sync", line, mask, value, outside ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return simt::vote("__ballot_sync", line, mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return simt::vote("__any_sync", line, mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return simt::vote("__all_sync", line, mask, predicate) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return simt::from_cell<unsigned>(
      simt::collective("__match_any_sync", line, mask, false, simt::to_cell(value), 0, simt::finish_match));
}

namespace simt {
struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
template <class Combine, class T>
T reduce(const char* name, int line, unsigned mask, T value) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return from_cell<T>(collective(name, line, mask, false, to_cell(value), 0, finish_reduce<T, Combine>));
}
}  // namespace simt

// These need compute capability 8.0.
template <class T>
T __reduce_add_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return simt::reduce<simt::Add>("__reduce_add_sync", line, mask, value);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return simt::reduce<simt::Min>("__reduce_min_sync", line, mask, value);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return simt::reduce<simt::Max>("__reduce_max_sync", line, mask, value);
}

// ---- memory

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <class T>
T __ldg(const T* address) {
  return *address;
}

namespace simt {
template <class T, class F>
T atomic_update(T* address, F&& next) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, next(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
}  // namespace simt

// Integers only: floating-point atomics would make results depend on the order of threads.
template <class T>
T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicMax(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return simt::atomic_update(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return simt::atomic_update(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* address, T value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicAnd(T* address, T value) {
  return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicExch(T* address, T value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// ---- bits and numbers

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }

inline int __float_as_int(float x) { return simt::from_cell<int>(simt::to_cell(x)); }
inline unsigned __float_as_uint(float x) { return simt::from_cell<unsigned>(simt::to_cell(x)); }
inline float __int_as_float(int x) { return simt::from_cell<float>(simt::to_cell(x)); }
inline float __uint_as_float(unsigned x) { return simt::from_cell<float>(simt::to_cell(x)); }
inline long long __double_as_longlong(double x) { return simt::from_cell<long long>(simt::to_cell(x)); }
inline double __longlong_as_double(long long x) { return simt::from_cell<double>(simt::to_cell(x)); }

// Not contracted to a fused multiply-add, as on the device.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
