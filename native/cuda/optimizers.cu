#include "core/optimizers.h"

#include "cuda/kernel.cuh"
#include "cuda/ops.h"
#include "cuda/per_step.cuh"

namespace st_moe::cuda {

#define ST_MOE_UPDATE(Name, name)                                                                              \
  void name(const Context& ctx, const Name##Args& args) {                                                      \
    dispatch_float(args.dtype, [&](auto zero) {                                                                \
      using F = Factors<decltype(zero)>;                                                                       \
      elementwise(ctx, args.size, Name##Update<decltype(zero), F>(args, F(ctx, args.step, factors_of(args)))); \
    });                                                                                                        \
  }
ST_MOE_OPTIMIZERS(ST_MOE_UPDATE)

}  // namespace st_moe::cuda
