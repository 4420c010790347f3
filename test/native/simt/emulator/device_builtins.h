#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulator/engine.h"

// Device functions of kernels: barriers, warp collectives, atomics, bit and math functions.
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

template <class T>
T shuffle(const char* name, int line, unsigned mask, T value, int source) {
  return from_cell<T>(collective(name, line, mask, to_cell(value), source, Collective::shuffle));
}

static inline unsigned vote(const char* name, int line, unsigned mask, int predicate) {
  return from_cell<unsigned>(collective(name, line, mask, Cell{}, predicate != 0, Collective::ballot));
}

static inline int segment(int lane, int width) {
  return lane & ~(width - 1);
}  // first lane of a shuffle's segment

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
  simt::collective("__syncwarp", line, mask, simt::Cell{}, 0, simt::Collective::barrier);
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
      simt::collective("__match_any_sync", line, mask, simt::to_cell(value), 0, simt::Collective::match));
}

namespace simt {
template <class T>
T reduce(const char* name, int line, unsigned mask, T value, Collective for_int, Collective for_unsigned) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  const Collective kind = std::is_same_v<T, int> ? for_int : for_unsigned;
  return from_cell<T>(collective(name, line, mask, to_cell(value), 0, kind));
}
}  // namespace simt

// These need compute capability 8.0.
template <class T>
T __reduce_add_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return simt::reduce("__reduce_add_sync", line, mask, value, simt::Collective::add_int,
                      simt::Collective::add_unsigned);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return simt::reduce("__reduce_min_sync", line, mask, value, simt::Collective::min_int,
                      simt::Collective::min_unsigned);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return simt::reduce("__reduce_max_sync", line, mask, value, simt::Collective::max_int,
                      simt::Collective::max_unsigned);
}

// ---- memory

inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
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

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline int __clz(int x) {
  return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}

inline int __float_as_int(float x) {
  return simt::from_cell<int>(simt::to_cell(x));
}
inline unsigned __float_as_uint(float x) {
  return simt::from_cell<unsigned>(simt::to_cell(x));
}
inline float __int_as_float(int x) {
  return simt::from_cell<float>(simt::to_cell(x));
}
inline float __uint_as_float(unsigned x) {
  return simt::from_cell<float>(simt::to_cell(x));
}
inline long long __double_as_longlong(double x) {
  return simt::from_cell<long long>(simt::to_cell(x));
}
inline double __longlong_as_double(long long x) {
  return simt::from_cell<double>(simt::to_cell(x));
}

// Not contracted to a fused multiply-add, as on the device.
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}

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
