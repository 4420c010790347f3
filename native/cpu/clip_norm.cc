#include "core/ops/reductions.h"
#include "core/clip.h"

#include "cpu/batch.h"

namespace st_moe::cpu::ST_MOE_ISA {

void clip_norm(const Context& ctx, const Batch<ClipNormArgs>& batch) {
  for_elements(ctx, batch, [](const ClipNormArgs& args, int64_t begin, int64_t end) {
    const double exact = clip_factor(*static_cast<const double*>(args.norm), args.max);
    if (exact == 1) return;
    dispatch_float(args.dtype, [&](auto zero) {
      using T = decltype(zero);
      T* const x = static_cast<T*>(args.x);
      const T factor = static_cast<T>(exact);
      for (int64_t j = begin; j < end; ++j) x[j] *= factor;
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
