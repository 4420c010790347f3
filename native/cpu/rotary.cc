#include <cmath>

#include "core/ops/attention.h"
#include "core/formulas.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
static void rotate(const Context& ctx, const RotaryArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const int32_t* position = static_cast<const int32_t*>(args.position);
  const int64_t half = args.d / 2, width = args.heads * args.d;
  const int64_t tokens = max_of<int64_t>(1, kElementBlock / max_of<int64_t>(1, args.T * width));
  parallel_blocks(ctx, args.N, tokens, [&](int64_t begin, int64_t end) {
    const Scratch<T> turn(2 * half);  // cosines, then sines, of one token
    T *cosine = turn.get(), *sine = cosine + half;
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t t = 0; t < args.T; ++t) {
        for (int64_t i = 0; i < half && (t == 0 || position); ++i) {
          const double angle = rotary_angle(position ? position[t] + n : n, i, args.d, args.base);
          cosine[i] = static_cast<T>(std::cos(angle));
          sine[i] = static_cast<T>(args.back ? -std::sin(angle) : std::sin(angle));
        }
        for (int64_t head = 0; head < args.heads; ++head) {
          const int64_t at = (t * args.N + n) * width + head * args.d;
          for (int64_t i = 0; i < half; ++i) {
            const T a = x[at + i], b = x[at + half + i];
            y[at + i] = a * cosine[i] - b * sine[i];
            y[at + half + i] = b * cosine[i] + a * sine[i];
          }
        }
      }
    }
  });
}

void rotary(const Context& ctx, const RotaryArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { rotate<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
