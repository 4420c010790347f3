#include "core/ops/elementwise.h"
#include "cpu/dropout.h"

#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void dropout(const Context& ctx, const DropoutArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    T* y = static_cast<T*>(args.y);
    const auto numbers = DropoutNumbers<T>::of(args.p);
    static_assert(kElementBlock / 2 % kPhiloxWords == 0);
    parallel_blocks(ctx, args.size, kElementBlock / 2, [&](int64_t begin, int64_t end) {
      for_words(args.seed, args.step, begin, end - begin, [&](int64_t i, const uint32_t* words, int64_t count) {
        const uint32_t* __restrict own = words;
        const T* __restrict from = x + begin + i;
        T* __restrict to = y + begin + i;
        for (int64_t j = 0; j < count; ++j) to[j] = numbers(from[j], own[j]);
      });
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
