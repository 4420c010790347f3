#pragma once
#include <cmath>

#include "cuda/kernel.cuh"

// The largest entries of a row one after the other: each is the first that comes after the one before it in a total
// order, so nothing has to be marked as taken, and rows and selections may have any length.
namespace st_moe::cuda {

template <class T>
struct Entry {
  T value;
  int32_t index;
};

// NaN before everything, then larger values, then lower indices.
template <class T>
__device__ static inline bool before(Entry<T> a, Entry<T> b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan != b_nan) return a_nan;
  if (a_nan || a.value == b.value) return a.index < b.index;
  return a.value > b.value;
}

template <class T>
__device__ static inline Entry<T> before_all() {
  return {static_cast<T>(NAN), -1};
}

template <class T>
__device__ static inline Entry<T> after_all() {
  return {-static_cast<T>(INFINITY), INT32_MAX};
}

// The first of the lanes' entries; all lanes get it.
template <class T>
__device__ static inline Entry<T> warp_first(Entry<T> entry) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Entry<T> other{__shfl_xor_sync(kAllLanes, entry.value, offset),
                         __shfl_xor_sync(kAllLanes, entry.index, offset)};
    if (before(other, entry)) entry = other;
  }
  return entry;
}

// The first entry after `previous` among those at start, start + step, … of a row [E]; value(e) is its value.
template <class T, class Value>
__device__ static inline Entry<T> first_after(Entry<T> previous, int64_t E, int64_t start, int64_t step, Value value) {
  Entry<T> best = after_all<T>();
  for (int64_t e = start; e < E; e += step) {
    const Entry<T> entry{value(e), static_cast<int32_t>(e)};
    if (before(previous, entry) && before(entry, best)) best = entry;
  }
  return best;
}

}  // namespace st_moe::cuda
