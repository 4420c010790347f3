#include <cmath>

#include "core/philox.h"
#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// Calls f(i, block) for the Philox blocks of a draw whose blocks give `per_block` elements each; i is the first element.
template <class F>
static void for_blocks(const Context& ctx, const RandomArgs& args, int64_t per_block, F&& f) {
  parallel_blocks(ctx, ceil_div(args.size, per_block), kElementBlock / 8, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      f(b * per_block, philox(args.seed, args.step, static_cast<uint64_t>(b)));
  });
}

// The arithmetic is the same in every backend, with or without fused multiply-add: the product of the 24-bit uniform
// and the width, a float, is exact in double. Rounding may reach b, which is outside of [a, b).
static void uniform_f32(const Context& ctx, const RandomArgs& args) {
  float* out = static_cast<float*>(args.out);
  const float a = static_cast<float>(args.a), b = static_cast<float>(args.b), below = std::nextafter(b, a);
  const float width = static_cast<float>(args.b - args.a);
  for_blocks(ctx, args, 4, [&](int64_t first, const PhiloxBlock& block) {
    for (int64_t j = 0; j < min_of<int64_t>(4, args.size - first); ++j) {
      const double u = static_cast<double>(uniform24(block.word[j]));
      const float value = static_cast<float>(static_cast<double>(a) + static_cast<double>(width) * u);
      out[first + j] = value < b ? value : below;
    }
  });
}

// Element i has words 2i and 2i + 1. The multiply-add is fused in every backend.
static void uniform_f64(const Context& ctx, const RandomArgs& args) {
  double* out = static_cast<double*>(args.out);
  const double below = std::nextafter(args.b, args.a), width = args.b - args.a;
  for_blocks(ctx, args, 2, [&](int64_t first, const PhiloxBlock& block) {
    for (int64_t j = 0; j < min_of<int64_t>(2, args.size - first); ++j) {
      const double value = std::fma(width, uniform53(block.word[2 * j], block.word[2 * j + 1]), args.a);
      out[first + j] = value < args.b ? value : below;
    }
  });
}

// Box–Muller in double: elements 2j and 2j + 1 are the cosine and the sine of block j, with the radius from its first
// two words and the angle from the others. 1 − u is in (0, 1], so the logarithm is finite.
template <class T>
static void normal_pairs(const Context& ctx, const RandomArgs& args) {
  T* out = static_cast<T*>(args.out);
  for_blocks(ctx, args, 2, [&](int64_t first, const PhiloxBlock& block) {
    const double u = 1.0 - uniform53(block.word[0], block.word[1]);
    const double angle = 6.283185307179586477 * uniform53(block.word[2], block.word[3]);
    const double radius = std::sqrt(-2.0 * std::log(u));
    out[first] = static_cast<T>(std::fma(args.b, radius * std::cos(angle), args.a));
    if (first + 1 < args.size) out[first + 1] = static_cast<T>(std::fma(args.b, radius * std::sin(angle), args.a));
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
