#include "cuda/ops.h"
#include "cuda/plan.cuh"

namespace st_moe::cuda {

void combine(const Context& ctx, const CombineArgs& args) {
  const Plan plan = plan_of(ctx, args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(ctx, args.T * args.D,
                CombineRows<T>{plan, static_cast<const T*>(args.x), static_cast<const T*>(args.weight), nullptr,
                               static_cast<T*>(args.y), args.D, 0});
  });
}

void combine_backward(const Context& ctx, const CombineBackwardArgs& args) {
  const Plan plan = plan_of(ctx, args, args.assignment);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *dy = static_cast<const T*>(args.dy), *weight = static_cast<const T*>(args.weight);
    if (args.dx) elementwise(ctx, args.R * args.D, GatherRows<T>{plan, dy, weight, static_cast<T*>(args.dx), args.D});
    if (args.dweight)
      by_warp(ctx, args.T * args.K,
              RowDots<T>{plan, dy, static_cast<const T*>(args.x), static_cast<T*>(args.dweight), args.D});
  });
}

}  // namespace st_moe::cuda
