#include "core/ops/moe.h"
#include "core/router_statistics.h"

#include <cmath>

#include "core/formulas.h"
#include "cuda/rows.cuh"
#include "cuda/selection.cuh"

namespace st_moe::cuda {

constexpr int64_t kTile = 64;  // tokens whose sums one block adds up
constexpr int kTileSums = 5;   // tokens, dropped, entropy, confidence, logit norm

template <class T>
struct TokenStatistics {
  const int32_t *expert_index, *kept, *mask;
  const T *gate, *logits;
  int32_t* count;  // [3E], of the assignments
  double* sum;     // [tiles, kTileSums]
  int64_t tokens, K, E;
  Stream::ErrorFlag* error_flag;

  // The assignments of a token, by a warp. The counters are integers: their order does not matter. Whether any is
  // dispatched.
  __device__ bool count_assignments(int64_t t, int lane) const {
    const int32_t *experts = expert_index + t * K, *taken = kept + t * K;
    const T* g = gate + t * K;
    int32_t any = 0;
    for (int64_t k = lane; k < K; k += kWarp) {
      const int32_t e = experts[k];
      if (e < 0 || e >= E) {
        report_error(error_flag, kExpertError, e);
      } else if (taken[k]) {
        any = 1;
        atomicAdd(count + e, 1);
        atomicAdd(count + 2 * E + k, 1);
      }
    }
    const int32_t top = warp_first(first_after(before_all<T>(), K, lane, kWarp, [&](int64_t k) { return g[k]; })).index;
    const int32_t e = experts[top];
    if (lane == 0 && e >= 0 && e < E) atomicAdd(count + E + e, 1);
    return warp_reduce(any, Max{}) != 0;
  }

  // All lanes get entropy, confidence and norm.
  __device__ void measure(int64_t t, int lane, double* result) const {
    const T* l = logits + t * E;
    T largest = -static_cast<T>(INFINITY);
    for (int64_t e = lane; e < E; e += kWarp) largest = Max{}(largest, l[e]);
    largest = warp_reduce(largest, Max{});
    LaneSum<T> total, dot, squares;
    for (int64_t e = lane; e < E; e += kWarp) {
      const T shifted = l[e] - largest, p = exp_of(shifted);
      total.add(p);
      dot.add(p * shifted);
      squares.add(l[e] * l[e]);
    }
    const double sum = warp_reduce(total.total(), Sum{});
    result[0] = std::log(sum) - warp_reduce(dot.total(), Sum{}) / sum;
    result[1] = 1 / sum;
    result[2] = std::sqrt(warp_reduce(squares.total(), Sum{}));
  }
};

template <class T>
__global__ void __launch_bounds__(kWarpBlock) statistics_kernel(TokenStatistics<T> s, int64_t tiles) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    double sums[kTileSums] = {};
    for (int64_t t = tile * kTile + warp; t < min_of(s.tokens, (tile + 1) * kTile); t += warps) {
      if (s.mask && s.mask[t] == 0) continue;
      sums[0] += 1;
      sums[1] += !s.count_assignments(t, lane);
      if (!s.logits) continue;
      double result[3];
      s.measure(t, lane, result);
      for (int i = 0; i < 3; ++i) sums[2 + i] += result[i];
    }
    for (int i = 0; i < kTileSums; ++i) {
      const double sum = block_reduce(lane == 0 ? sums[i] : 0.0, Sum{}, 0.0);
      if (threadIdx.x == 0) s.sum[tile * kTileSums + i] = sum;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    finish_kernel(const double* sum, const int32_t* count, T* out, int64_t tiles, int64_t counts, double slots) {
  constexpr int64_t place[kTileSums] = {kTokens, kDropped, kEntropy, kConfidence, kLogitNorm};
  for (int i = 0; i < kTileSums; ++i) {
    double total = 0;
    for (int64_t tile = threadIdx.x; tile < tiles; tile += blockDim.x) total += sum[tile * kTileSums + i];
    total = block_reduce(total, Sum{}, 0.0);
    if (threadIdx.x == 0) out[place[i]] = static_cast<T>(total);
  }
  if (threadIdx.x == 0) {
    out[kForwards] = 1;
    out[kSlots] = static_cast<T>(slots);
  }
  for (int64_t i = threadIdx.x; i < counts; i += blockDim.x) out[kRouterSums + i] = static_cast<T>(count[i]);
}

struct ClearCounts {
  int32_t* count;
  __device__ void operator()(int64_t i) const { count[i] = 0; }
};

void router_statistics(const Context& ctx, const RouterStatisticsArgs& args) {
  const int64_t tokens = args.B * args.N, tiles = ceil_div(tokens, kTile), counts = 3 * args.E;
  const double slots = static_cast<double>(args.B) * static_cast<double>(args.E) * static_cast<double>(args.C);
  Scratch<int32_t> count(ctx, counts);
  Scratch<double> sum(ctx, tiles * kTileSums);
  elementwise(ctx, counts, ClearCounts{count.get()});
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const TokenStatistics<T> statistics{args.expert_index,
                                        args.kept,
                                        args.mask,
                                        static_cast<const T*>(args.gate),
                                        static_cast<const T*>(args.logits),
                                        count.get(),
                                        sum.get(),
                                        tokens,
                                        args.K,
                                        args.E,
                                        stream_of(ctx).error_flag()};
    if (tiles > 0) launch(ctx, statistics_kernel<T>, grid_for(tiles, 1), kWarpBlock, 0, statistics, tiles);
    launch(ctx, finish_kernel<T>, 1, kBlock, 0, sum.get(), count.get(), static_cast<T*>(args.statistics), tiles, counts,
           slots);
  });
}

}  // namespace st_moe::cuda
