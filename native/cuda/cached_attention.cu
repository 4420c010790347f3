#include <cmath>

#include "core/ops/attention.h"
#include "core/formulas.h"
#include "cuda/row_lanes.cuh"

// One block per head of a query: scores of a key per thread, then a column of the output per thread.
namespace st_moe::cuda {

// Where the keys of a sequence are.
struct CachePlace {
  const int32_t *position, *slot;
  int64_t N, S, M;
  Stream::ErrorFlag* error_flag;

  // The first row of sequence b; −1, and an error, if it is not in the cache.
  __device__ int64_t first_row(int64_t b) const {
    const int64_t at = slot ? slot[b] : b;
    const bool inside = at >= 0 && at < S && position[b] >= 0 && position[b] <= M - N;
    if (!inside) report_error(error_flag, kPlaceError, at >= 0 && at < S ? position[b] : static_cast<int32_t>(at));
    return inside ? at * M : -1;
  }
};

// Element i of k [B, N, width] and of v.
template <class T>
struct Remember {
  const T *k, *v;
  T *keys, *values;
  CachePlace place;
  int64_t width;

  __device__ void operator()(int64_t i) const {
    const int64_t row = i / width, b = row / place.N;
    const int64_t first = place.first_row(b);
    if (first < 0) return;
    const int64_t to = (first + place.position[b] + row - b * place.N) * width + i - row * width;
    keys[to] = k[i];
    values[to] = v[i];
  }
};

template <class T>
struct CachedHeads {
  const T *q, *keys, *values;
  T* y;
  CachePlace place;
  int64_t heads, kv_heads, d;
  T factor;
};

template <class T>
__global__ void __launch_bounds__(kBlock) cached_attention_kernel(int64_t count, CachedHeads<T> in) {
  __shared__ T p[kBlock];
  const RowLanes<kBlock> lanes;
  const int64_t d = in.d, stride = in.kv_heads * d;
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {  // i: a head of query n of sequence b
    const int64_t h = i % in.heads, row = i / in.heads, b = row / in.place.N, n = row - b * in.place.N;
    const int64_t first = in.place.first_row(b);
    const int64_t seen = first < 0 ? 0 : in.place.position[b] + n + 1;
    const int64_t at = first * stride + h / (in.heads / in.kv_heads) * d;
    const T* q = in.q + i * d;
    T* y = in.y + i * d;
    T largest = -static_cast<T>(INFINITY), total = 0;
    for (int64_t c = threadIdx.x; c < d; c += kBlock) y[c] = 0;
    for (int64_t begin = 0; begin < seen; begin += kBlock) {
      const int64_t j = begin + threadIdx.x;
      T score = -static_cast<T>(INFINITY);
      if (j < seen) {
        score = 0;
        for (int64_t c = 0; c < d; ++c) score += q[c] * in.keys[at + j * stride + c];
        score *= in.factor;
      }
      const T most = Max{}(lanes.max(score), largest);
      const T shift = most == -static_cast<T>(INFINITY) ? T(0) : most;  // only −inf so far: e^−inf, not e^NaN
      const T rescale = exp_of(largest - shift);
      p[threadIdx.x] = j < seen ? exp_of(score - shift) : T(0);
      total = total * rescale + lanes.sum(p[threadIdx.x]);
      largest = most;
      __syncthreads();
      const int64_t rows = min_of(int64_t{kBlock}, seen - begin);
      for (int64_t c = threadIdx.x; c < d; c += kBlock) {
        T sum = y[c] * rescale;
        for (int64_t r = 0; r < rows; ++r) sum += p[r] * in.values[at + (begin + r) * stride + c];
        y[c] = sum;
      }
      __syncthreads();
    }
    const T inverse = seen > 0 ? T(1) / total : T(0);
    for (int64_t c = threadIdx.x; c < d; c += kBlock) y[c] *= inverse;
  }
}

void cached_attention(const Context& ctx, const CachedAttentionArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const CachePlace place{args.position, args.slot, args.N, args.S, args.M, stream_of(ctx).error_flag()};
    const int64_t width = args.kv_heads * args.d, count = args.B * args.N * args.heads;
    T *keys = static_cast<T*>(args.keys), *values = static_cast<T*>(args.values);
    elementwise(ctx, args.B * args.N * width,
                Remember<T>{static_cast<const T*>(args.k), static_cast<const T*>(args.v), keys, values, place, width});
    if (count == 0 || args.d == 0) return;
    const CachedHeads<T> heads{
        static_cast<const T*>(args.q), keys, values, static_cast<T*>(args.y), place, args.heads, args.kv_heads, args.d,
        static_cast<T>(args.scale)};
    launch(ctx, cached_attention_kernel<T>, grid_for(count, 1), kBlock, 0, count, heads);
  });
}

}  // namespace st_moe::cuda
