#include "core/ops/moe.h"
#include "cuda/plan.cuh"

namespace st_moe::cuda {

void combine(const Context& ctx, const CombineArgs& args) {
  const Plan plan = plan_of(ctx, args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    combine_rows<T>(ctx, plan, static_cast<const T*>(args.x), args.D, static_cast<const T*>(args.weight), nullptr,
                    static_cast<T*>(args.y), args.D);
  });
}

void combine_backward(const Context& ctx, const CombineBackwardArgs& args) {
  const Plan plan = plan_of(ctx, args, args.assignment);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *dy = static_cast<const T*>(args.dy), *weight = static_cast<const T*>(args.weight);
    if (args.dx) gather_rows<T>(ctx, plan, dy, weight, static_cast<T*>(args.dx), args.D);
    if (args.dweight) row_dots<T>(ctx, plan, dy, static_cast<const T*>(args.x), static_cast<T*>(args.dweight), args.D);
  });
}

}  // namespace st_moe::cuda
