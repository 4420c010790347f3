#include <cmath>

#include "cuda/batch.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

template <class T>
struct Squares {
  const T* x;
  int64_t size;
  bool aligned;
  double scale;
};

template <class T, int N>
__device__ static double sum_of_squares(const Vector<T, N>& values, double scale) {
  double sum = 0;
  for (int c = 0; c < N; ++c) {
    const double value = static_cast<double>(values[c]) * scale;
    sum += value * value;
  }
  return sum;
}

// In float32, whose arithmetic is much faster on most GPUs, unless squares may have overflowed or lost digits.
template <int N>
__device__ static double sum_of_squares(const Vector<float, N>& values, double scale) {
  float sum = 0;
  bool zeros = true;
  for (int c = 0; c < N; ++c) sum += values[c] * values[c], zeros = zeros && values[c] == 0;
  if (zeros) return 0;
  if (sum > 1e-30f && sum < INFINITY) return static_cast<double>(sum) * scale * scale;
  return sum_of_squares<float>(values, scale);
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    sum_squares_kernel(const __grid_constant__ Items<Squares<T>> items, double* partial) {
  items.for_chunks([&](const Squares<T>& squares, int64_t chunk, int64_t begin, int64_t end) {
    double sum = 0;
    for_elements<vector_width<T>>(begin, end, squares.aligned, [&](auto width, int64_t i) {
      constexpr int N = decltype(width)::value;
      sum += sum_of_squares(load<N>(squares.x + i), squares.scale);
    });
    sum = block_reduce(sum, Sum{}, 0.0);
    if (threadIdx.x == 0) partial[chunk] = sum;
  });
}

__global__ void __launch_bounds__(kBlock) norm_of_sums_kernel(const double* partial, double* out, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = block_reduce(sum, Sum{}, 0.0);
  if (threadIdx.x == 0) *out = std::sqrt(sum);
}

void norm(const Context& ctx, const Batch<NormArgs>& batch) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < batch.count; ++i) chunks += ceil_div(batch.items[i].size, kChunk);
  Scratch<double> partial(ctx, chunks);
  double* next = partial.get();
  const auto add = [&](auto zero) {
    using T = decltype(zero);
    const auto squares_of = [](const NormArgs& args) {
      return Squares<T>{static_cast<const T*>(args.x), args.size, aligned(static_cast<const T*>(args.x)), args.scale};
    };
    in_parts<T>(batch, squares_of, [&](const auto& items) {
      launch(ctx, sum_squares_kernel<T>, grid_for(items.chunks(), 1), kBlock, 0, items, next);
      next += items.chunks();
    });
  };
  add(float{});
  add(double{});
  launch(ctx, norm_of_sums_kernel, 1, kBlock, 0, partial.get(), static_cast<double*>(batch.items[0].out), chunks);
}

}  // namespace st_moe::cuda
