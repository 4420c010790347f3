#include "cuda/kernel.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

constexpr int64_t kChunk = 16384;  // elements that one block sums

template <class T>
__global__ void __launch_bounds__(kBlock) sum_squares_kernel(const T* x, double* partial, int64_t size, double scale) {
  for (int64_t c = blockIdx.x; c < ceil_div(size, kChunk); c += gridDim.x) {
    const int64_t end = min_of(size, (c + 1) * kChunk);
    double sum = 0;
    for (int64_t i = c * kChunk + threadIdx.x; i < end; i += blockDim.x) {
      const double value = static_cast<double>(x[i]) * scale;
      sum += value * value;
    }
    sum = block_reduce(sum, Sum{}, 0.0);
    if (threadIdx.x == 0) partial[c] = sum;
  }
}

__global__ void __launch_bounds__(kBlock) add_partials_kernel(const double* partial, double* out, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = block_reduce(sum, Sum{}, 0.0);
  if (threadIdx.x == 0) *out = sum;
}

void sum_squares(const Context& ctx, const SumSquaresArgs& args) {
  double* out = static_cast<double*>(args.out);
  const int64_t chunks = ceil_div(args.size, kChunk);
  Scratch<double> partial(ctx, chunks);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (chunks == 0) return;
    launch(ctx, sum_squares_kernel<T>, grid_for(chunks, 1), kBlock, 0, static_cast<const T*>(args.x), partial.get(),
           args.size, args.scale);
  });
  launch(ctx, add_partials_kernel, 1, kBlock, 0, partial.get(), out, chunks);
}

}  // namespace st_moe::cuda
