#pragma once
#include "core/formulas.h"
#include "cuda/attention_shape.cuh"

// Matrix multiplications and sums on square tiles of scores. A block is a square of 16 × 16 threads: thread (ty, tx)
// holds the scores of rows ty·M … ty·M + M − 1 and columns tx, tx + 16, …; the 16 threads of a tile's row are half a
// warp.
namespace st_moe::cuda {

// Rows are one longer than a multiple of 32: the threads of a warp read different banks.
template <class T>
struct TileMemory {
  T x[Tile<T>::size][kSlice + 1], z[Tile<T>::size][kSlice + 1];
  T scores[Tile<T>::size][Tile<T>::size + 1];
};

// memory = rows [0, size) and elements [first, first + kSlice); zeros outside.
template <class T>
__device__ static inline void load_slice(const HeadRows<T>& rows, int64_t first,
                                         T (&memory)[Tile<T>::size][kSlice + 1]) {
  const int column = threadIdx.x % kSlice;
  const bool inside = first + column < rows.d;
  for (int row = threadIdx.x / kSlice; row < Tile<T>::size; row += kBlock / kSlice)
    memory[row][column] = inside && row < rows.count ? rows.data[row * rows.stride + first + column] : T(0);
}

// s = x · zᵀ for this thread's part of the tile. Every thread of the block calls it; x and z are free afterwards.
template <class T>
__device__ static inline void tile_products(const HeadRows<T>& x, const HeadRows<T>& z, TileMemory<T>& memory,
                                            T (&s)[Tile<T>::micro][Tile<T>::micro]) {
  constexpr int M = Tile<T>::micro;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  for (int r = 0; r < M; ++r)
    for (int c = 0; c < M; ++c) s[r][c] = 0;
  for (int64_t first = 0; first < x.d; first += kSlice) {
    load_slice(x, first, memory.x);
    load_slice(z, first, memory.z);
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < kSlice; ++i) {
      T left[M], right[M];
      for (int r = 0; r < M; ++r) left[r] = memory.x[ty * M + r][i];
      for (int c = 0; c < M; ++c) right[c] = memory.z[tx + c * kSide][i];
      for (int r = 0; r < M; ++r)
        for (int c = 0; c < M; ++c) s[r][c] += left[r] * right[c];
    }
    __syncthreads();
  }
}

// kSlices · 32 columns of an output [size, d], of which a thread holds two of each slice for each of its rows.
template <class T, int kSlices>
struct TileSums {
  static constexpr int M = Tile<T>::micro, columns = kSlices * kSlice, per_slice = kSlice / kSide;
  T sum[kSlices][M][per_slice];

  __device__ void clear() {
    for (int slice = 0; slice < kSlices; ++slice)
      for (int r = 0; r < M; ++r)
        for (int c = 0; c < per_slice; ++c) sum[slice][r][c] = 0;
  }

  __device__ void scale(const T (&factor)[M]) {
    for (int slice = 0; slice < kSlices; ++slice)
      for (int r = 0; r < M; ++r)
        for (int c = 0; c < per_slice; ++c) sum[slice][r][c] *= factor[r];
  }

  // sum += memory.scores · z [size, first_column …]. `whole`: all rows see the same columns, whatever the rest holds is
  // 0. Every thread of the block calls it, after writing scores; scores and z are free afterwards.
  __device__ void add(TileMemory<T>& memory, const HeadRows<T>& z, int64_t first_column, const Visible (&visible)[M],
                      bool whole) {
    const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      const int64_t first = first_column + slice * kSlice;
      if (first >= z.d) break;
      load_slice(z, first, memory.z);
      __syncthreads();
      for (int i = 0; i < Tile<T>::size; ++i) {
        T right[per_slice];
        for (int c = 0; c < per_slice; ++c) right[c] = memory.z[i][tx + c * kSide];
        for (int r = 0; r < M; ++r) {
          const T left = memory.scores[ty * M + r][i];
          if (whole || (i >= visible[r].begin && i < visible[r].end))
            for (int c = 0; c < per_slice; ++c) sum[slice][r][c] += left * right[c];
        }
      }
      __syncthreads();
    }
  }

  // out: row 0 of the tile
  __device__ void store(T* out, int64_t stride, int64_t rows, int64_t first_column, int64_t d) const {
    const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice)
      for (int r = 0; r < M; ++r)
        for (int c = 0; c < per_slice; ++c) {
          const int64_t column = first_column + slice * kSlice + tx + c * kSide;
          if (ty * M + r < rows && column < d) out[(ty * M + r) * stride + column] = sum[slice][r][c];
        }
  }
};

// Over the threads that share a tile's row. All of them get the result.
template <class T, class Combine>
__device__ static inline T reduce_row(T value, Combine combine) {
#pragma unroll
  for (int offset = kSide / 2; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

}  // namespace st_moe::cuda
