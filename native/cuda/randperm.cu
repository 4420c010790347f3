#include "core/ops/creation.h"
#include "cuda/kernel.cuh"
#include "cuda/per_step.cuh"
#include "cuda/sort.cuh"

namespace st_moe::cuda {

// Half of the key of each element in the current order.
struct HalfKey {
  Sample sample;
  int64_t* order;  // set if `first`
  int32_t* keys;
  int word;
  bool first;

  __device__ void operator()(int64_t i) const {
    if (first) order[i] = i;
    keys[i] = static_cast<int32_t>(sample.word(static_cast<uint64_t>(2 * order[i] + word)) >> 1);
  }
};

struct TakeOrder {
  const int64_t* order;
  int32_t* out;
  __device__ void operator()(int64_t i) const { out[i] = static_cast<int32_t>(order[i]); }
};

// Sorts by the low half, then by the high one. Each sort begins in the first half of its memory.
void randperm(const Context& ctx, const RandpermArgs& args) {
  const int64_t size = args.size;
  const Scratch<int32_t> keys(ctx, 2 * size);
  const Scratch<int64_t> order(ctx, 2 * size);
  const Sample sample = sample_of(ctx, args.seed, args.step);
  for (const bool first : {true, false}) {
    elementwise(ctx, size, HalfKey{sample, order.get(), keys.get(), first ? 1 : 0, first});
    // Four passes of eight bits: the result is in the half where it began.
    sort_by_key(ctx, size, int64_t{1} << 31, keys.get(), order.get());
  }
  elementwise(ctx, size, TakeOrder{order.get(), static_cast<int32_t*>(args.out)});
}

}  // namespace st_moe::cuda
