#pragma once
#include <cmath>

#include "cuda/vector.cuh"

// Ops on the rows of [rows, width]: one warp per row, or one block per long row.
namespace st_moe::cuda {

constexpr int64_t kWarpWidth = 1024;  // the longest row for a warp

// The threads that share a row. Element j belongs to lane j % kThreads. All lanes call the reductions, and all get the
// result.
template <int kThreads>
struct RowLanes {
  static constexpr int size = kThreads;

  __device__ int lane() const { return threadIdx.x % kThreads; }

  template <class T, class Combine>
  __device__ T reduce(T value, Combine combine, T empty) const {
    if constexpr (kThreads == kWarp) {
      return warp_reduce(value, combine);
    } else {
      return block_reduce(value, combine, empty);
    }
  }
  template <class T>
  __device__ T sum(T value) const {
    return reduce(value, Sum{}, T(0));
  }
  template <class T>
  __device__ T max(T value) const {
    return reduce(value, Max{}, -static_cast<T>(INFINITY));
  }
};

// Vectors of N values that a thread has at once, unless what it computes with them takes too many registers.
template <int N>
constexpr int at_once = N >= 4 ? 4 : 2;

// The columns of a row, N at a time, by all lanes: f(each) for some of a lane's, and each(g) calls g(i, j) for its
// i-th, which begin at column j. Loads come first and stores last in f, since a load waits for the stores before it.
template <int N, int kAtOnce = at_once<N>, class Lanes, class F>
__device__ static inline void for_columns(int64_t columns, Lanes lanes, F f) {
  constexpr int step = Lanes::size * N;
#pragma unroll 1
  for (int64_t first = lanes.lane() * N; first < columns; first += kAtOnce * step)
    f([&](auto&& g) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (first + i * step < columns) g(i, first + i * step);
    });
}

// Writes the columns of a row: value(j) is a vector of N values from column j on.
template <int N, int kAtOnce = at_once<N>, class T, class Lanes, class Value>
__device__ static inline void write_row(T* row, int64_t columns, Lanes lanes, Value value) {
  for_columns<N, kAtOnce>(columns, lanes, [&](auto each) {
    Vector<T, N> values[kAtOnce]{};
    each([&](int i, int64_t j) { values[i] = value(j); });
    each([&](int i, int64_t j) { store(row + j, values[i]); });
  });
}

template <int kThreads, class F>
__global__ void __launch_bounds__(kBlock, half_resident(kBlock)) rows_kernel(int64_t rows, F f) {
  const int64_t per_block = blockDim.x / kThreads;
  for (int64_t row = blockIdx.x * per_block + threadIdx.x / kThreads; row < rows; row += gridDim.x * per_block)
    f(row, RowLanes<kThreads>{});
}

// f(row, lanes) for each row, by all its lanes. F is a functor of plain data.
template <class F>
void for_rows(const Context& ctx, int64_t rows, int64_t width, F f, int64_t warp_width = kWarpWidth) {
  if (rows == 0) return;
  if (width <= warp_width) {
    const int64_t warps = rows < kBlock / kWarp ? rows : kBlock / kWarp;
    launch(ctx, rows_kernel<kWarp, F>, grid_for(rows, warps), static_cast<unsigned>(warps * kWarp), 0, rows, f);
  } else {
    launch(ctx, rows_kernel<kBlock, F>, grid_for(rows, 1), kBlock, 0, rows, f);
  }
}

}  // namespace st_moe::cuda
