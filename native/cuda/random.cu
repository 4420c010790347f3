#include <cmath>

#include "core/ops/creation.h"
#include "cuda/kernel.cuh"
#include "cuda/per_step.cuh"

// A thread computes the elements of one Philox block, with the formulas of cpu/random.cc.
namespace st_moe::cuda {

struct Numbers {
  Sample sample;
  int64_t size;
  double a, b;
  int64_t first_block;
  __device__ PhiloxBlock block(int64_t i) const { return sample.block(static_cast<uint64_t>(first_block + i)); }
};

struct UniformF32 {
  float* out;
  Numbers numbers;
  float b, below;
  double a, width;
  __device__ void operator()(int64_t block) const {
    const PhiloxBlock words = numbers.block(block);
    for (int w = 0; w < 4 && 4 * block + w < numbers.size; ++w) {
      const float value = static_cast<float>(a + width * static_cast<double>(uniform24(words.word[w])));
      out[4 * block + w] = value < b ? value : below;
    }
  }
};

struct UniformF64 {
  double* out;
  Numbers numbers;
  double below, width;
  __device__ void operator()(int64_t block) const {
    const PhiloxBlock words = numbers.block(block);
    for (int w = 0; w < 2 && 2 * block + w < numbers.size; ++w) {
      const double value = fma(width, uniform53(words.word[2 * w], words.word[2 * w + 1]), numbers.a);
      out[2 * block + w] = value < numbers.b ? value : below;
    }
  }
};

template <class T>
struct NormalPair {
  T* out;
  Numbers numbers;
  __device__ void operator()(int64_t block) const {
    const PhiloxBlock words = numbers.block(block);
    const double radius = sqrt(-2.0 * log(1.0 - uniform53(words.word[0], words.word[1])));
    const double angle = 6.283185307179586477 * uniform53(words.word[2], words.word[3]);
    out[2 * block] = static_cast<T>(fma(numbers.b, radius * cos(angle), numbers.a));
    if (2 * block + 1 < numbers.size)
      out[2 * block + 1] = static_cast<T>(fma(numbers.b, radius * sin(angle), numbers.a));
  }
};

void random(const Context& ctx, const RandomArgs& args) {
  const Numbers numbers{sample_of(ctx, args.seed, args.step), args.size, args.a, args.b, args.first_block};
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = static_cast<T*>(args.out);
    if (args.distribution == Distribution::normal) {
      elementwise(ctx, ceil_div(args.size, 2), NormalPair<T>{out, numbers});
    } else if constexpr (sizeof(T) == 4) {
      const float b = static_cast<float>(args.b), below = std::nextafter(b, static_cast<float>(args.a));
      const double a = static_cast<float>(args.a), width = static_cast<float>(args.b - args.a);
      elementwise(ctx, ceil_div(args.size, 4), UniformF32{out, numbers, b, below, a, width});
    } else {
      const double below = std::nextafter(args.b, args.a);
      elementwise(ctx, ceil_div(args.size, 2), UniformF64{out, numbers, below, args.b - args.a});
    }
  });
}

}  // namespace st_moe::cuda
