#pragma once
#include "core/philox.h"
#include "cuda/stream.h"

// The numbers of an op that change from one replay of a captured step to the next. Kernels read them from arguments, or
// during capture from device memory that each replay fills first, because arguments are part of the graph.
namespace st_moe::cuda {

struct Sample {
  uint64_t seed, step;
  const StepValues* captured;  // null: seed and step are valid

  __device__ PhiloxBlock block(uint64_t i) const {
    return captured ? philox(captured->seed, captured->step, i) : philox(seed, step, i);
  }
  __device__ uint32_t word(uint64_t i) const {  // selected without an index, which would need local memory
    const PhiloxBlock b = block(i >> 2);
    const uint32_t even = i & 2 ? b.word[2] : b.word[0], odd = i & 2 ? b.word[3] : b.word[1];
    return i & 1 ? odd : even;
  }
};

static inline Sample sample_of(const Context& ctx, uint64_t seed, uint64_t step) {
  return {seed, step, stream_of(ctx).captured_values(step)};
}

// Factors of an optimizer's update, in f32 or f64.
template <class T>
struct Factors {
  T value[kFactors];
  const StepValues* captured;  // null: value is valid

  Factors() = default;
  Factors(const Context& ctx, int64_t step, const FactorList& list)
      : captured(stream_of(ctx).captured_values(static_cast<uint64_t>(step))) {
    for (int i = 0; i < kFactors; ++i) value[i] = static_cast<T>(list.value[i]);
  }
  __device__ T operator[](int i) const {
    if (!captured) return value[i];
    if constexpr (sizeof(T) == 4) return captured->f32[i];
    return static_cast<T>(captured->f64[i]);
  }
};

}  // namespace st_moe::cuda
