#include "cuda/assignments.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

void combine(const Context& ctx, const CombineArgs& args) {
  const Assignments assignments = assignments_of(ctx, args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(ctx, args.B * args.N * args.D,
                CombineRows<T>{assignments, static_cast<const T*>(args.x), static_cast<const T*>(args.weight), nullptr,
                               static_cast<T*>(args.y), args.D});
  });
}

void combine_backward(const Context& ctx, const CombineBackwardArgs& args) {
  const Assignments assignments = assignments_of(ctx, args);
  Scratch<int32_t> holder(ctx, args.dx ? assignments.slots() : 0);
  if (args.dx) fill_holders(ctx, assignments, holder.get());
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *dy = static_cast<const T*>(args.dy), *weight = static_cast<const T*>(args.weight);
    if (args.dx)
      elementwise(ctx, assignments.slots() * args.D,
                  GatherRows<T>{holder.get(), dy, weight, static_cast<T*>(args.dx), args.D, args.K});
    if (args.dweight)
      by_warp(ctx, args.B * args.N * args.K,
              SlotDots<T>{assignments, dy, static_cast<const T*>(args.x), static_cast<T*>(args.dweight), args.D});
  });
}

}  // namespace st_moe::cuda
