#pragma once
#include <cstring>
#include <thread>
#include <type_traits>

#include "emulator/engine.h"

// The device functions that kernels use: barriers, warp collectives, atomics.
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

// First lane of a shuffle's segment.
static inline int segment(int lane, int width) {
  return lane & ~(width - 1);
}

}  // namespace simt

// The last parameter of barriers and collectives is the line of the call, for the reports.

inline void __syncthreads(int line = __builtin_LINE()) {
  simt::barrier(line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  simt::collective("__syncwarp", line, mask, simt::Cell{}, 0, simt::Collective::barrier);
}

inline void __threadfence() {
  simt::fence();
}

// In a loop that waits for another block.
inline void __nanosleep(unsigned) {
  std::this_thread::yield();
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
unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return simt::from_cell<unsigned>(
      simt::collective("__match_any_sync", line, mask, simt::to_cell(value), 0, simt::Collective::match));
}

// Integers only: floating-point atomics would make results depend on the order of threads.
template <class T>
T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicMax(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, old < value ? value : old, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}

// A product that is rounded before anything is added to it.
inline float __fmul_rn(float a, float b) {
  return a * b;
}

// A store of 64 or 128 bits, of values that need not be floats.
template <class T>
void __stwb(T* address, T value) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) simt::die("a store that is not aligned");
  std::memcpy(address, &value, sizeof value);
}
