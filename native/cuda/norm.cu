#include <cmath>

#include "core/ops/reductions.h"
#include "cuda/batch.cuh"

namespace st_moe::cuda {

template <class T>
struct Squares {
  const T* x;
  int64_t size;
  bool aligned;
  double scale;
};

// Σ (scale · x)² of one thread, as exact as in double. Floats are squared and added in float32, with what that loses,
// unless what is lost could be too small for one or the sum too large: on most GPUs that is much faster.
template <class T>
class SumOfSquares {
 public:
  __device__ void add(T x, double scale) {
    if constexpr (sizeof(T) == 4) {
      const T square = __fmul_rn(x, x);
      if (square > 1e-30f && square < 1e30f) {
        floats_.add(square);
        return floats_.add(fmaf(x, x, -square));
      }
    }
    if (x == T(0)) return;
    const double value = static_cast<double>(x) * scale;
    doubles_ += value * value;
  }
  __device__ double total(double scale) const { return doubles_ + floats_.total() * scale * scale; }

 private:
  LaneSum<T> floats_;
  double doubles_ = 0;
};

template <class T>
__global__ void __launch_bounds__(kBlock)
    sum_squares_kernel(const __grid_constant__ Items<Squares<T>> items, double* partial) {
  items.for_chunks([&](const Squares<T>& squares, int64_t chunk, int64_t begin, int64_t end) {
    SumOfSquares<T> mine;
    for_elements<vector_width<T>>(begin, end, squares.aligned, [&](auto width, int64_t i) {
      constexpr int N = decltype(width)::value;
      const Vector<T, N> values = load<N>(squares.x + i);
      for (int c = 0; c < N; ++c) mine.add(values[c], squares.scale);
    });
    const double sum = block_reduce(mine.total(squares.scale), Sum{}, 0.0);
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
