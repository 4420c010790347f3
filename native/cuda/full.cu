#include "core/convert.h"
#include "cuda/kernel.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

template <class T>
struct Fill {
  T* out;
  T value;
  __device__ void operator()(int64_t i) const { out[i] = value; }
};

void full(const Context& ctx, const FullArgs& args) {
  dispatch_rounded(args.dtype, args.value, [&](auto value) {
    elementwise(ctx, args.size, Fill<decltype(value)>{static_cast<decltype(value)*>(args.out), value});
  });
}

}  // namespace st_moe::cuda
