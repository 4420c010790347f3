#pragma once
#include "cuda/vector.cuh"

// The logits x · wᵀ of a router, by the kernel that chooses by them: a GEMM of so few experts would take longer to
// start than to run.
namespace st_moe::cuda {

constexpr int kFewExperts = 16;
constexpr int64_t kFewWeights = 32 << 10;  // bytes, in shared memory

// A warp multiplies so many tokens by so many experts, and then has a lane for each product.
constexpr int kLogitTokens = 4, kLogitExperts = 8;
static_assert(kLogitTokens * kLogitExperts == kWarp && kFewExperts % kLogitExperts == 0);

template <class T>
struct LogitInputs {
  const T *x, *w;  // [tokens, D], [E, D]
  int64_t E, D;
  T* logits;  // [tokens, E]

  bool few() const { return E <= kFewExperts && E * D * int64_t{sizeof(T)} <= kFewWeights; }
};

// Of lane l: the sum of values[l] over the lanes.
template <class T>
__device__ static inline T transposed_sum(T (&values)[kWarp], int lane) {
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T kept = upper ? values[i + half] : values[i], given = upper ? values[i] : values[i + half];
      values[i] = kept + __shfl_xor_sync(kAllLanes, given, half);
    }
  }
  return values[0];
}

// Copies w, N values at a time, by a block.
template <int N, class T>
__device__ static inline void load_weights(const LogitInputs<T>& in, T* weights) {
  for (int64_t i = threadIdx.x * N; i < in.E * in.D; i += blockDim.x * N)
    *reinterpret_cast<Vector<T, N>*>(weights + i) = load<N>(in.w + i);
}

// Of the tokens first, first + step, … below last, at most kLogitTokens of them, by a warp. Lane l adds up the columns
// l · N …, (l + 32) · N …, whichever tokens there are.
template <int N, class T>
__device__ static inline void write_logits(const LogitInputs<T>& in, const T* weights, int64_t first, int64_t step,
                                           int64_t last, int lane) {
  T sums[kFewExperts / kLogitExperts][kWarp] = {};
#pragma unroll 1
  for (int64_t d = lane * N; d < in.D; d += kWarp * N) {
    Vector<T, N> values[kLogitTokens];
#pragma unroll
    for (int i = 0; i < kLogitTokens; ++i) values[i] = load<N>(in.x + min_of(first + i * step, last - 1) * in.D + d);
#pragma unroll
    for (int e = 0; e < kFewExperts; ++e) {
      if (e >= in.E) continue;
      const Vector<T, N> weight = load<N>(weights + e * in.D + d);
#pragma unroll
      for (int i = 0; i < kLogitTokens; ++i)
        for (int c = 0; c < N; ++c)
          sums[e / kLogitExperts][i * kLogitExperts + e % kLogitExperts] += values[i][c] * weight[c];
    }
  }
#pragma unroll
  for (int part = 0; part < kFewExperts / kLogitExperts; ++part) {
    if (part * kLogitExperts >= in.E) continue;
    const T logit = transposed_sum(sums[part], lane);
    const int64_t token = first + lane / kLogitExperts * step, expert = part * kLogitExperts + lane % kLogitExperts;
    if (token < last && expert < in.E) in.logits[token * in.E + expert] = logit;
  }
}

}  // namespace st_moe::cuda
