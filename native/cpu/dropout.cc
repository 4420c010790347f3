#include "cpu/dropout.h"

#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void dropout(const Context& ctx, const DropoutArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    T* y = static_cast<T*>(args.y);
    const ElementDropout<T> elements{args.seed, args.step, DropoutNumbers<T>::of(args.p)};
    static_assert(kElementBlock / 2 % kPhiloxWords == 0);
    parallel_blocks(ctx, args.size, kElementBlock / 2,
                    [=](int64_t begin, int64_t end) { elements.apply(x + begin, y + begin, begin, end - begin); });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
