#include "core/ops/moe.h"
#include "cuda/plan.cuh"

namespace st_moe::cuda {

void dispatch(const Context& ctx, const DispatchArgs& args) {
  const Plan plan = plan_of(ctx, args, args.assignment);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    gather_rows<T>(ctx, plan, static_cast<const T*>(args.x), nullptr, static_cast<T*>(args.y), args.D);
  });
}

void dispatch_backward(const Context& ctx, const DispatchBackwardArgs& args) {
  const Plan plan = plan_of(ctx, args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* dy = static_cast<const T*>(args.dy);
    if (args.dx) combine_rows<T>(ctx, plan, dy, args.D, nullptr, nullptr, static_cast<T*>(args.dx), args.D);
    if (args.dweight) row_dots<T>(ctx, plan, static_cast<const T*>(args.x), dy, static_cast<T*>(args.dweight), args.D);
  });
}

}  // namespace st_moe::cuda
