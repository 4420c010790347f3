#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void sum_squares(const Context& ctx, const SumSquaresArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    const double scale = args.scale;
    const int64_t block = 2 * kElementBlock, blocks = ceil_div(args.size, block);
    Scratch<double> partial(blocks);
    parallel_for(ctx, blocks, [&](int64_t b) {
      const T* part = x + b * block;
      partial[b] = wide_reduce<T>(min_of(block, args.size - b * block), [&](auto at) {
        const auto value = at(part) * scale;
        return value * value;
      });
    });
    *static_cast<double*>(args.out) = wide_sum(partial.get(), blocks);
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
