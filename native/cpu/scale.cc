#include "core/ops/elementwise.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void scale(const Context& ctx, const ScaleArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* x = static_cast<T*>(args.x);
    const T factor = static_cast<T>(args.factor);
    parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) x[i] *= factor;
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
