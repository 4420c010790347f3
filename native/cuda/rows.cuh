#pragma once
#include "cuda/kernel.cuh"

// Iteration over rows and elements of a matrix.
namespace st_moe::cuda {

constexpr int kWarpBlock = 128;  // threads per block for one warp per item

struct MatrixIndex {
  int64_t row, column;
};

// Row and column of element i of a matrix with `width` columns. A 64-bit division costs several times a 32-bit one.
__device__ static inline MatrixIndex matrix_index(int64_t i, int64_t width) {
  if (((i | width) >> 32) == 0) {
    const uint32_t index = static_cast<uint32_t>(i), columns = static_cast<uint32_t>(width), row = index / columns;
    return {row, index - row * columns};
  }
  const int64_t row = i / width;
  return {row, i - row * width};
}

// Division of numbers below 2^31 by a divisor that the host knows, of any size: a multiplication and a shift.
// (Granlund and Montgomery, Division by invariant integers using multiplication, PLDI 1994)
class Divisor {
 public:
  Divisor() : Divisor(1) {}
  explicit Divisor(int64_t divisor)
      : divisor_(static_cast<uint32_t>(min_of(int64_t{1} << 31, max_of(int64_t{1}, divisor)))) {
    while ((uint64_t{1} << (shift_ - 31)) < divisor_) ++shift_;
    multiplier_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + divisor_ - 1) / divisor_);
  }
  __device__ uint32_t quotient(uint32_t n) const { return static_cast<uint32_t>(uint64_t{n} * multiplier_ >> shift_); }
  __device__ uint32_t remainder(uint32_t n) const { return n - quotient(n) * divisor_; }

 private:
  uint32_t divisor_, multiplier_;
  int shift_ = 31;
};

// Items by warps: f(item, lane) for item in [0, items), with all lanes of a warp in the same item.
template <class F>
__global__ void __launch_bounds__(kWarpBlock, half_resident(kWarpBlock)) by_warp_kernel(int64_t items, F f) {
  const int64_t warps = int64_t{gridDim.x} * (kWarpBlock / kWarp);
  const int64_t first = blockIdx.x * int64_t{kWarpBlock / kWarp} + threadIdx.x / kWarp;
  for (int64_t item = first; item < items; item += warps) f(item, static_cast<int>(threadIdx.x % kWarp));
}

template <class F>
void by_warp(const Context& ctx, int64_t items, F f) {
  if (items > 0) launch(ctx, by_warp_kernel<F>, grid_for(items, kWarpBlock / kWarp), kWarpBlock, 0, items, f);
}

}  // namespace st_moe::cuda
