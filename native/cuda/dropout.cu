#include <cmath>

#include "cuda/kernel.cuh"
#include "cuda/ops.h"
#include "cuda/per_step.cuh"

namespace st_moe::cuda {

// A thread computes the four elements of a Philox block.
template <class T>
struct Dropout {
  const T* x;
  T* y;
  int64_t size;
  Sample sample;
  T factor;
  uint32_t threshold;
  __device__ void operator()(int64_t block) const {
    const PhiloxBlock words = sample.block(static_cast<uint64_t>(block));
    for (int w = 0; w < 4 && 4 * block + w < size; ++w) {
      const int64_t i = 4 * block + w;
      y[i] = words.word[w] >> 8 >= threshold ? x[i] * factor : T(0);
    }
  }
};

void dropout(const Context& ctx, const DropoutArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    // uniform24(word) ≥ p in integers: word >> 8 ≥ p · 2^24, which is false for p = 1.
    const uint32_t threshold = static_cast<uint32_t>(std::ceil(args.p * 0x1p24));
    elementwise(ctx, ceil_div(args.size, 4),
                Dropout<T>{static_cast<const T*>(args.x), static_cast<T*>(args.y), args.size,
                           sample_of(ctx, args.seed, args.step), static_cast<T>(1.0 / (1.0 - args.p)), threshold});
  });
}

}  // namespace st_moe::cuda
