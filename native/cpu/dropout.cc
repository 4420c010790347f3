#include <cmath>

#include "cpu/ops.h"
#include "cpu/philox_words.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void dropout(const Context& ctx, const DropoutArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    T* y = static_cast<T*>(args.y);
    const T factor = static_cast<T>(1.0 / (1.0 - args.p));
    // uniform24(word) ≥ p in integers: word >> 8 ≥ p · 2^24, which is false for p = 1.
    const uint32_t threshold = static_cast<uint32_t>(std::ceil(args.p * 0x1p24));
    static_assert(kElementBlock / 2 % kPhiloxWords == 0);
    parallel_blocks(ctx, args.size, kElementBlock / 2, [=](int64_t begin, int64_t end) {
      uint32_t words[kPhiloxWords];
      for (int64_t first = begin; first < end; first += kPhiloxWords) {
        philox_words(args.seed, args.step, static_cast<uint64_t>(first) / 4, words);
        const T* __restrict from = x + first;
        T* __restrict to = y + first;
        const int64_t count = min_of(kPhiloxWords, end - first);
        for (int64_t i = 0; i < count; ++i) {
          const T scaled = from[i] * factor;  // outside the selection, else the loop has a branch
          to[i] = words[i] >> 8 >= threshold ? scaled : T(0);
        }
      }
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
