#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "core/context.h"
#include "core/dispatch.h"
#include "core/philox.h"
#include "cuda/stream.h"

// Included by every CUDA op file. Kernels are plain CUDA C++ (no <<<>>>, no inline PTX), so that the same files also
// compile for the emulator of the tests. An op checks sizes on the host, launches, and never waits for the device.
namespace st_moe::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kBlock = 256;  // default threads per block

// The threads that a multiprocessor can hold, by compute capability. The emulator has no multiprocessors.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kMostResident = 1024;
#elif defined(__CUDA_ARCH__) && ((__CUDA_ARCH__ >= 860 && __CUDA_ARCH__ < 900) || __CUDA_ARCH__ >= 1100)
constexpr int kMostResident = 1536;
#else
constexpr int kMostResident = 2048;
#endif

// Blocks of so many threads that are half of them. As a launch bound it says how many registers there are: the compiler
// must not use more, and spills none to use fewer.
constexpr int half_resident(int threads) {
  return kMostResident / 2 / threads;
}

__host__ __device__ static inline int64_t min_of(int64_t a, int64_t b) {
  return b < a ? b : a;
}
__host__ __device__ static inline int64_t max_of(int64_t a, int64_t b) {
  return a < b ? b : a;
}
__host__ __device__ static inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Blocks for one thread per element, bounded: kernels stride over the grid.
static inline unsigned grid_for(int64_t elements, int64_t per_block = kBlock) {
  const int64_t blocks = ceil_div(elements, per_block);
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > 65535 ? 65535 : blocks);
}

// Launches on the stream of the call. Throws Error.
template <class... Params, class... Args>
void launch(const Context& ctx, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_of(ctx).stream();
  const char* name = kernel_name(reinterpret_cast<const void*>(kernel));  // looked up first: unavailable after a fault
  cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  // The code of a kernel is loaded at its first launch, to memory outside of the pool, which may hold all that is left.
  if (status == cudaErrorMemoryAllocation && stream_of(ctx).trim() == cudaSuccess)
    status = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  check(status, name);
  stream_of(ctx).launched(name);
}

// Element loop: one launch, f(i) for i in [0, size). F is a functor of plain data with a __device__ operator().
// Not unrolled: the number of iterations, mostly one, would cost a division.
template <class F>
__global__ void __launch_bounds__(kBlock) elementwise_kernel(int64_t size, F f) {
#pragma unroll 1
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < size; i += int64_t{gridDim.x} * blockDim.x) f(i);
}

template <class F>
void elementwise(const Context& ctx, int64_t size, F f) {
  if (size > 0) launch(ctx, elementwise_kernel<F>, grid_for(size), kBlock, 0, size, f);
}

// Uninitialized device memory for one op.
template <class T>
class Scratch {
 public:
  Scratch(const Context& ctx, int64_t count) : ctx_(ctx) {
    data_ = count ? static_cast<T*>(stream_of(ctx).allocate(static_cast<size_t>(count) * sizeof(T))) : nullptr;
  }
  ~Scratch() {
    if (data_) stream_of(ctx_).release(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  const Context& ctx_;
  T* data_;
};

// ---- reductions in a fixed order

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {  // a NaN wins, as in torch
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

// Σ of what one thread adds, with the sum of what the additions lose (TwoSum: Knuth, The Art of Computer Programming 2,
// §4.2.2): as exact as a sum of doubles, which cost 32 to 64 times as much on most GPUs. Infinite if a plain sum is.
template <class T>
class LaneSum {
 public:
  __device__ void add(T value) {
    const T sum = sum_ + value, added = sum - sum_;
    lost_ += (sum_ - (sum - added)) + (value - added);
    sum_ = sum;
  }
  __device__ void scale(T factor) { sum_ *= factor, lost_ *= factor; }
  __device__ double total() const {
    const double sum = static_cast<double>(sum_);
    return lost_ == lost_ ? sum + static_cast<double>(lost_) : sum;  // lost_ is NaN from an infinity on
  }

 private:
  T sum_ = 0, lost_ = 0;
};

// All lanes get the result.
template <class T, class Combine>
__device__ static inline T warp_reduce(T value, Combine combine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

// Σ of the values of this lane and lower ones.
template <class T>
__device__ static inline T warp_scan(T value) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T before = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += before;
  }
  return value;
}

// All threads get the result; every thread of the block calls it. blockDim.x is a multiple of 32, at most 1024.
template <class T, class Combine>
__device__ static inline T block_reduce(T value, Combine combine, T empty) {
  __shared__ T partial[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_reduce(value, combine);
  __syncthreads();  // an earlier call may still read
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return warp_reduce(lane < warps ? partial[lane] : empty, combine);
}

// Σ of the values of lower threads. Every thread of the block calls it.
__device__ static inline int64_t block_exclusive_scan(int64_t value) {
  __shared__ int64_t warp_totals[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t scanned = warp_scan(value);
  if (lane == kWarp - 1) warp_totals[warp] = scanned;
  __syncthreads();
  int64_t before = 0;
  for (int w = 0; w < warp; ++w) before += warp_totals[w];
  __syncthreads();
  return before + scanned - value;
}

}  // namespace st_moe::cuda
