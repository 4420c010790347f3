#include "core/ops/creation.h"
#include "core/convert.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void full(const Context& ctx, const FullArgs& args) {
  dispatch_rounded(args.dtype, args.value, [&](auto value) {
    auto* out = static_cast<decltype(value)*>(args.out);
    parallel_blocks(ctx, args.size, 4 * kElementBlock, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out[i] = value;
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
