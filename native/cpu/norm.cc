#include <cmath>

#include "core/ops/reductions.h"
#include "cpu/batch.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void norm(const Context& ctx, const Batch<NormArgs>& batch) {
  Scratch<int64_t> ends(batch.count);
  const BatchBlocks blocks(batch, 2 * kElementBlock, ends.get());
  Scratch<double> partial(blocks.count());
  blocks.parallel(ctx, [&](int64_t i, int64_t block, int64_t begin, int64_t end) {
    const NormArgs& args = batch.items[i];
    dispatch_float(args.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* part = static_cast<const T*>(args.x) + begin;
      partial[block] = wide_reduce<T>(end - begin, [&](auto at) {
        const auto value = at(part) * args.scale;
        return value * value;
      });
    });
  });
  double total = 0;
  for (int64_t i = 0; i < batch.count; ++i)
    total += wide_sum(partial.get() + blocks.first(i), blocks.first(i + 1) - blocks.first(i));
  *static_cast<double*>(batch.items[0].out) = std::sqrt(total);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
