#include "core/ops/moe.h"
#include "cuda/rows.cuh"
#include "cuda/selection.cuh"

namespace st_moe::cuda {

constexpr int kTopkBlock = 128;

// One block per row; one pass over the row per entry of the K.
template <class T>
__global__ void __launch_bounds__(kTopkBlock)
    topk_kernel(const T* x, T* value, int32_t* index, int64_t rows, int64_t E, int64_t K) {
  __shared__ T warp_value[kWarp];
  __shared__ int32_t warp_index[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    Entry<T> entry = before_all<T>();
    for (int64_t k = 0; k < K; ++k) {
      entry = warp_first(first_after(entry, E, threadIdx.x, blockDim.x, [&](int64_t e) { return x[t * E + e]; }));
      if (warps > 1) {
        __syncthreads();  // the previous pass may still read
        if (lane == 0) {
          warp_value[warp] = entry.value;
          warp_index[warp] = entry.index;
        }
        __syncthreads();
        entry = warp_first(lane < warps ? Entry<T>{warp_value[lane], warp_index[lane]} : after_all<T>());
      }
      if (threadIdx.x == 0) {
        value[t * K + k] = entry.value;
        index[t * K + k] = entry.index;
      }
    }
  }
}

void topk(const Context& ctx, const TopkArgs& args) {
  if (args.K > args.E)
    fail(ErrorCode::shape, "k must be at most the size of the last dimension, %lld, got %lld",
         static_cast<long long>(args.E), static_cast<long long>(args.K));
  if (args.K == 0 || args.T == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int threads = args.E > 8 * kWarp ? kTopkBlock : kWarp;
    launch(ctx, topk_kernel<T>, grid_for(args.T, 1), threads, 0, static_cast<const T*>(args.x),
           static_cast<T*>(args.value), args.index, args.T, args.E, args.K);
  });
}

// One warp per row: lane l writes only the entries l, l + 32, …, so that the order of the K decides if a caller names
// one entry twice.
template <class T>
struct TopkGradient {
  const T* dvalue;
  const int32_t* index;
  T* dx;
  int64_t E, K;
  Stream::ErrorFlag* error_flag;

  __device__ void operator()(int64_t t, int lane) const {
    T* row = dx + t * E;
    for (int64_t e = lane; e < E; e += kWarp) row[e] = 0;
    for (int64_t k = t * K; k < (t + 1) * K; ++k) {
      const int32_t e = index[k];
      if (e < 0 || e >= E) {
        if (lane == 0) report_error(error_flag, kIndexError, e);
      } else if (e % kWarp == lane) {
        row[e] = dvalue[k];
      }
    }
  }
};

void topk_backward(const Context& ctx, const TopkBackwardArgs& args) {
  if (args.E == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    by_warp(ctx, args.T,
            TopkGradient<T>{static_cast<const T*>(args.dvalue), args.index, static_cast<T*>(args.dx), args.E, args.K,
                            stream_of(ctx).error_flag()});
  });
}

}  // namespace st_moe::cuda
