#pragma once
#include "cuda/vector.cuh"

// The logits x · wᵀ of a router, by the kernel that chooses by them: a GEMM of so few experts would take longer to
// start than to run.
namespace st_moe::cuda {

constexpr int kFewExperts = 16;
constexpr int64_t kFewWeights = 32 << 10;  // bytes, in shared memory

// A warp multiplies so many tokens by so many experts at a time, and then has a lane for each product. The sums are in
// registers: those of doubles for fewer tokens.
template <class T>
constexpr int kLogitTokens = sizeof(T) == 4 ? 4 : 2;
template <class T>
constexpr int kLogitExperts = kWarp / kLogitTokens<T>;

template <class T>
struct LogitInputs {
  const T *x, *w;  // [tokens, D], [E, D]
  int64_t E, D;
  T* logits;  // [tokens, E]

  bool few() const { return E <= kFewExperts && E * D * int64_t{sizeof(T)} <= kFewWeights; }
};

// Of lane l: the sum of values[l] over the lanes. A template and no loop, which nvcc does not unroll for every
// architecture: then the values would be in memory.
template <int half = kWarp / 2, class T>
__device__ static inline T transposed_sum(T (&values)[kWarp], int lane) {
  const bool upper = (lane & half) != 0;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const T kept = upper ? values[i + half] : values[i], given = upper ? values[i] : values[i + half];
    values[i] = kept + __shfl_xor_sync(kAllLanes, given, half);
  }
  if constexpr (half > 1)
    return transposed_sum<half / 2>(values, lane);
  else
    return values[0];
}

// Copies w, N values at a time, by a block.
template <int N, class T>
__device__ static inline void load_weights(const LogitInputs<T>& in, T* weights) {
  for (int64_t i = threadIdx.x * N; i < in.E * in.D; i += blockDim.x * N)
    *reinterpret_cast<Vector<T, N>*>(weights + i) = load<N>(in.w + i);
}

// Of the tokens first, first + step, … below last, at most kLogitTokens<T> of them, by a warp. Lane l adds up the
// columns l · N …, (l + 32) · N …, whichever tokens there are.
template <int N, class T>
__device__ static inline void write_logits(const LogitInputs<T>& in, const T* weights, int64_t first, int64_t step,
                                           int64_t last, int lane) {
  constexpr int tokens = kLogitTokens<T>, experts = kLogitExperts<T>;
  static_assert(kFewExperts % experts == 0);
  T sums[kFewExperts / experts][kWarp] = {};
#pragma unroll 1
  for (int64_t d = lane * N; d < in.D; d += kWarp * N) {
    Vector<T, N> values[tokens];
#pragma unroll
    for (int i = 0; i < tokens; ++i) values[i] = load<N>(in.x + min_of(first + i * step, last - 1) * in.D + d);
#pragma unroll
    for (int e = 0; e < kFewExperts; ++e) {
      if (e >= in.E) continue;
      const Vector<T, N> weight = load<N>(weights + e * in.D + d);
#pragma unroll
      for (int i = 0; i < tokens; ++i)
        for (int c = 0; c < N; ++c) sums[e / experts][i * experts + e % experts] += values[i][c] * weight[c];
    }
  }
#pragma unroll
  for (int part = 0; part < kFewExperts / experts; ++part) {
    if (part * experts >= in.E) continue;
    const T logit = transposed_sum(sums[part], lane);
    const int64_t token = first + lane / experts * step, expert = part * experts + lane % experts;
    if (token < last && expert < in.E) in.logits[token * in.E + expert] = logit;
  }
}

}  // namespace st_moe::cuda
