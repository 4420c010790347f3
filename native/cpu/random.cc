#include <cmath>

#include "core/ops/creation.h"
#include "cpu/philox_words.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// Calls f(first, count, words) for runs of elements, each of which uses `words_each` words of the sample.
template <class F>
static void for_runs(const Context& ctx, const RandomArgs& args, int64_t words_each, F&& f) {
  const int64_t run = kPhiloxWords / words_each;
  parallel_blocks(ctx, ceil_div(args.size, run), kElementBlock / 2 / run, [&](int64_t begin, int64_t end) {
    uint32_t words[kPhiloxWords];
    for (int64_t r = begin; r < end; ++r) {
      philox_words(args.seed, args.step, static_cast<uint64_t>(args.first_block + r * kPhiloxBlocks), words);
      f(r * run, min_of(run, args.size - r * run), words);
    }
  });
}

// The arithmetic is the same in every backend, with or without fused multiply-add: the product of the 24-bit uniform
// and the width, a float, is exact in double. Rounding may reach b, which is outside [a, b).
static void uniform_f32(const Context& ctx, const RandomArgs& args) {
  float* out = static_cast<float*>(args.out);
  const float b = static_cast<float>(args.b), below = std::nextafter(b, static_cast<float>(args.a));
  const double a = static_cast<float>(args.a), width = static_cast<float>(args.b - args.a);
  for_runs(ctx, args, 1, [=](int64_t first, int64_t count, const uint32_t* words) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(a + width * static_cast<double>(uniform24(words[i])));
      out[first + i] = value < b ? value : below;
    }
  });
}

// Element i uses words 2i and 2i + 1. Every backend fuses the multiply-add.
static void uniform_f64(const Context& ctx, const RandomArgs& args) {
  double* out = static_cast<double*>(args.out);
  const double a = args.a, b = args.b, below = std::nextafter(b, a), width = b - a;
  for_runs(ctx, args, 2, [=](int64_t first, int64_t count, const uint32_t* words) {
    for (int64_t i = 0; i < count; ++i) {
      const double value = std::fma(width, uniform53(words[2 * i], words[2 * i + 1]), a);
      out[first + i] = value < b ? value : below;
    }
  });
}

// Box–Muller in double: elements 2j and 2j + 1 are the cosine and the sine of block j, with the radius from its first
// two words and the angle from the others. 1 − u is in (0, 1], so the logarithm is finite.
template <class T>
static void normal_pairs(const Context& ctx, const RandomArgs& args) {
  T* out = static_cast<T*>(args.out);
  for_runs(ctx, args, 2, [&](int64_t first, int64_t count, const uint32_t* words) {
    for (int64_t i = 0; i < count; i += 2) {
      const uint32_t* word = words + 2 * i;
      const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform53(word[0], word[1])));
      const double angle = 6.283185307179586477 * uniform53(word[2], word[3]);
      out[first + i] = static_cast<T>(std::fma(args.b, radius * std::cos(angle), args.a));
      if (i + 1 < count) out[first + i + 1] = static_cast<T>(std::fma(args.b, radius * std::sin(angle), args.a));
    }
  });
}

void random(const Context& ctx, const RandomArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.distribution == Distribution::normal) return normal_pairs<T>(ctx, args);
    if constexpr (sizeof(T) == 4) {
      uniform_f32(ctx, args);
    } else {
      uniform_f64(ctx, args);
    }
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
