#include "core/ops/elementwise.h"
#include "cuda/kernel.cuh"

namespace st_moe::cuda {

template <class T>
struct Scale {
  T* x;
  T factor;
  __device__ void operator()(int64_t i) const { x[i] *= factor; }
};

void scale(const Context& ctx, const ScaleArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(ctx, args.size, Scale<T>{static_cast<T*>(args.x), static_cast<T>(args.factor)});
  });
}

}  // namespace st_moe::cuda
