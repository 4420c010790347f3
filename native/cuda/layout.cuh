#pragma once
#include "core/layout.h"
#include "cuda/kernel.cuh"

namespace st_moe::cuda {

static inline int64_t size_of(const int64_t* shape, int rank) {
  int64_t size = 1;
  for (int d = 0; d < rank; ++d) size *= shape[d];
  return size;
}

// The offset of element i of a layout in each of its tensors. Index has 32 bits if the size allows: 64-bit divisions
// are several times as slow.
template <class Index, int N>
__device__ static inline void offsets_of(const Layout<N>& layout, Index i, int64_t (&offset)[N]) {
#pragma unroll
  for (int t = 0; t < N; ++t) offset[t] = 0;
  for (int d = layout.rank - 1; d > 0; --d) {
    const Index extent = static_cast<Index>(layout.shape[d]), rest = i / extent, count = i - rest * extent;
#pragma unroll
    for (int t = 0; t < N; ++t) offset[t] += static_cast<int64_t>(count) * layout.strides[t][d];
    i = rest;
  }
  if (layout.rank > 0) {
#pragma unroll
    for (int t = 0; t < N; ++t) offset[t] += static_cast<int64_t>(i) * layout.strides[t][0];
  }
}

// Calls f(uint32_t{}) or f(int64_t{}).
template <class F>
void dispatch_index(int64_t size, F&& f) {
  if (size < int64_t{1} << 31) return f(uint32_t{});
  f(int64_t{});
}

}  // namespace st_moe::cuda
