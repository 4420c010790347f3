#include "cuda/assignments.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

void dispatch(const Context& ctx, const DispatchArgs& args) {
  const Assignments assignments = assignments_of(ctx, args);
  Scratch<int32_t> holder(ctx, assignments.slots());
  fill_holders(ctx, assignments, holder.get());
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(
        ctx, assignments.slots() * args.D,
        GatherRows<T>{holder.get(), static_cast<const T*>(args.x), nullptr, static_cast<T*>(args.y), args.D, args.K});
  });
}

void dispatch_backward(const Context& ctx, const DispatchBackwardArgs& args) {
  const Assignments assignments = assignments_of(ctx, args);
  const int64_t tokens = args.B * args.N;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* dy = static_cast<const T*>(args.dy);
    if (args.dx)
      elementwise(ctx, tokens * args.D,
                  CombineRows<T>{assignments, dy, nullptr, nullptr, static_cast<T*>(args.dx), args.D});
    if (args.dweight)
      by_warp(ctx, tokens * args.K,
              SlotDots<T>{assignments, static_cast<const T*>(args.x), dy, static_cast<T*>(args.dweight), args.D});
  });
}

}  // namespace st_moe::cuda
