#pragma once
#include "core/layout.h"
#include "cuda/rows.cuh"

namespace st_moe::cuda {

static inline int64_t size_of(const int64_t* shape, int rank) {
  int64_t size = 1;
  for (int d = 0; d < rank; ++d) size *= shape[d];
  return size;
}

// The offset of element i of a layout in each of its tensors. Index has 32 bits if the size allows.
template <class Index, int N>
class Offsets {
 public:
  explicit Offsets(const Layout<N>& layout) : layout_(layout) {
    for (int d = 0; d < layout.rank; ++d) by_extent_[d] = Divisor(layout.shape[d]);
  }
  __device__ void of(Index i, int64_t (&offset)[N]) const {
#pragma unroll
    for (int t = 0; t < N; ++t) offset[t] = 0;
    for (int d = layout_.rank - 1; d > 0; --d) {
      const Index extent = static_cast<Index>(layout_.shape[d]), rest = outer(i, d), count = i - rest * extent;
#pragma unroll
      for (int t = 0; t < N; ++t) offset[t] += static_cast<int64_t>(count) * layout_.strides[t][d];
      i = rest;
    }
    if (layout_.rank > 0) {
#pragma unroll
      for (int t = 0; t < N; ++t) offset[t] += static_cast<int64_t>(i) * layout_.strides[t][0];
    }
  }

 private:
  __device__ Index outer(Index i, int d) const {
    if constexpr (sizeof(Index) == 4) return by_extent_[d].quotient(i);
    return i / static_cast<Index>(layout_.shape[d]);
  }

  Layout<N> layout_;
  Divisor by_extent_[kMaxRank];
};

// Calls f(uint32_t{}) or f(int64_t{}).
template <class F>
void dispatch_index(int64_t size, F&& f) {
  if (size < int64_t{1} << 31) return f(uint32_t{});
  f(int64_t{});
}

}  // namespace st_moe::cuda
