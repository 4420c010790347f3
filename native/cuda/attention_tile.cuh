#pragma once
#include "core/formulas.h"
#include "cuda/attention_shape.cuh"

// Matrix multiplications and sums on square tiles of scores. A block is a square of 16 × 16 threads: thread (ty, tx)
// holds the scores of rows ty·M … ty·M + M − 1 and columns tx, tx + 16, …; the 16 threads of a tile's row are half a
// warp. N: values of a row of global memory that a thread takes at once. Shared memory is read M values at a time.
namespace st_moe::cuda {

// Rows are one access longer than a multiple of 32 banks: eight threads that read 128 bits of as many rows use all
// banks.
template <class T>
struct alignas(kAccess) TileMemory {
  static constexpr int size = Tile<T>::size, pad = vector_width<T>;
  union {
    struct {
      T x[size][kSlice + pad], z[size][kSlice + pad];
    } slices;
    T columns[size][size + pad];
  };
  T scores[size][size + pad];
};

// memory = rows [0, size) and elements [first, first + width) of them; zeros outside. Four loads are in flight at once.
template <int N, class T, int kPitch>
__device__ static inline void load_tile(const HeadRows<T>& rows, int64_t first, T (&memory)[Tile<T>::size][kPitch]) {
  constexpr int lanes = (kPitch - TileMemory<T>::pad) / N, apart = kBlock / lanes, steps = Tile<T>::size / apart;
  constexpr int batch = steps < 4 ? steps : 4;
  const int column = threadIdx.x % lanes * N;
  const int64_t count = first + column < rows.d ? rows.count : 0;
  const T* from = rows.data + first + column;
#pragma unroll 1
  for (int row = threadIdx.x / lanes; row < Tile<T>::size; row += batch * apart) {
    Vector<T, N> values[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i)
      values[i] = row + i * apart < count ? load<N>(from + (row + i * apart) * rows.stride) : Vector<T, N>{};
#pragma unroll
    for (int i = 0; i < batch; ++i) *reinterpret_cast<Vector<T, N>*>(&memory[row + i * apart][column]) = values[i];
  }
}

// s = x · zᵀ for this thread's part of the tile. Every thread of the block calls it; the slices are free afterwards.
template <int N, class T>
__device__ static inline void tile_products(const HeadRows<T>& x, const HeadRows<T>& z, TileMemory<T>& memory,
                                            T (&s)[Tile<T>::micro][Tile<T>::micro]) {
  constexpr int M = Tile<T>::micro;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  for (int r = 0; r < M; ++r)
    for (int c = 0; c < M; ++c) s[r][c] = 0;
  for (int64_t first = 0; first < x.d; first += kSlice) {
    load_tile<N>(x, first, memory.slices.x);
    load_tile<N>(z, first, memory.slices.z);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < kSlice; i += M) {
      Vector<T, M> left[M];
      for (int r = 0; r < M; ++r) left[r] = load<M>(&memory.slices.x[ty * M + r][i]);
      for (int c = 0; c < M; ++c) {
        const Vector<T, M> right = load<M>(&memory.slices.z[tx + c * kSide][i]);
        for (int j = 0; j < M; ++j)
          for (int r = 0; r < M; ++r) s[r][c] += left[r][j] * right[j];
      }
    }
    __syncthreads();
  }
}

// kColumns columns of an output [size, d], of which a thread holds M side by side of each `size` for each of its rows.
template <class T, int kColumns>
struct TileSums {
  static constexpr int M = Tile<T>::micro, size = Tile<T>::size, slices = kColumns / size;
  Vector<T, M> sum[slices][M];

  __device__ void clear() {
    for (int slice = 0; slice < slices; ++slice)
      for (int r = 0; r < M; ++r) sum[slice][r] = {};
  }

  __device__ void scale(const T (&factor)[M]) {
    for (int slice = 0; slice < slices; ++slice)
      for (int r = 0; r < M; ++r)
        for (int c = 0; c < M; ++c) sum[slice][r][c] *= factor[r];
  }

  // sum += memory.scores · z [size, first_column …], or scoresᵀ · z. `whole`: every row uses every z; else
  // uses(row, i) says which. Every thread of the block calls it, after writing scores; scores and columns are free
  // afterwards.
  template <int N, bool kTransposed = false, class Uses>
  __device__ void add(TileMemory<T>& memory, const HeadRows<T>& z, int64_t first_column, bool whole, Uses uses) {
#pragma unroll
    for (int slice = 0; slice < slices; ++slice) {
      const int64_t first = first_column + slice * size;
      if (first >= z.d) break;
      load_tile<N>(z, first, memory.columns);
      __syncthreads();
      if (whole) {
        add_columns<kTransposed>(memory, sum[slice], [](int, int) { return true; });
      } else {
        add_columns<kTransposed>(memory, sum[slice], uses);
      }
      __syncthreads();
    }
  }

  // out: row 0 of the tile
  template <int N>
  __device__ void store(T* out, int64_t stride, int64_t rows, int64_t first_column, int64_t d) const {
    each<N>(stride, rows, first_column, d, [&](int slice, int r, int c, int64_t at) {
      Vector<T, N> values;
      for (int j = 0; j < N; ++j) values[j] = sum[slice][r][c + j];
      cuda::store(out + at, values);
    });
  }

  // What `store` has stored.
  template <int N>
  __device__ void load(const T* out, int64_t stride, int64_t rows, int64_t first_column, int64_t d) {
    clear();
    each<N>(stride, rows, first_column, d, [&](int slice, int r, int c, int64_t at) {
      const Vector<T, N> values = cuda::load<N>(out + at);
      for (int j = 0; j < N; ++j) sum[slice][r][c + j] = values[j];
    });
  }

 private:
  template <bool kTransposed, class Uses>
  __device__ static void add_columns(const TileMemory<T>& memory, Vector<T, M> (&sum)[M], Uses uses) {
    const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
#pragma unroll 1
    for (int i = 0; i < size; i += M) {
      Vector<T, M> left[M];
      for (int j = 0; j < M; ++j)
        left[j] = cuda::load<M>(kTransposed ? &memory.scores[i + j][ty * M] : &memory.scores[ty * M + j][i]);
      for (int j = 0; j < M; ++j) {
        const Vector<T, M> right = cuda::load<M>(&memory.columns[i + j][tx * M]);
        for (int r = 0; r < M; ++r) {
          const T factor = kTransposed ? left[j][r] : left[r][j];
          if (uses(ty * M + r, i + j))
            for (int c = 0; c < M; ++c) sum[r][c] += factor * right[c];
        }
      }
    }
  }

  // f(slice, r, c, offset of sum[slice][r][c]) for every N-th column of the rows that exist.
  template <int N, class F>
  __device__ static void each(int64_t stride, int64_t rows, int64_t first_column, int64_t d, F f) {
    const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
#pragma unroll
    for (int slice = 0; slice < slices; ++slice)
#pragma unroll
      for (int r = 0; r < M; ++r)
#pragma unroll
        for (int c = 0; c < M; c += N) {
          const int64_t column = first_column + slice * size + tx * M + c;
          if (ty * M + r < rows && column < d) f(slice, r, c, (ty * M + r) * stride + column);
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
