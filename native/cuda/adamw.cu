#include <cmath>

#include "cuda/kernel.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

// In the order of torch.optim.AdamW; see cpu/adamw.cc.
template <class T>
struct Adamw {
  T* p;
  const T* g;
  T *m, *v;
  T decay, beta1, blend1, blend2, beta2, rate, inverse_root, eps;
  __device__ void operator()(int64_t i) const {
    const T difference = g[i] - m[i];
    const T first = blend1 >= T(0.5) ? g[i] - difference * beta1 : m[i] + difference * blend1;
    const T second = v[i] * beta2 + g[i] * g[i] * blend2;
    m[i] = first;
    v[i] = second;
    p[i] = p[i] * decay - rate * (first / (sqrt(second) * inverse_root + eps));
  }
};

void adamw(const Context& ctx, const AdamwArgs& args) {
  const double step = static_cast<double>(args.step);
  const double correction1 = 1.0 - std::pow(args.beta1, step), correction2 = 1.0 - std::pow(args.beta2, step);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(ctx, args.size,
                Adamw<T>{static_cast<T*>(args.p), static_cast<const T*>(args.g), static_cast<T*>(args.m),
                         static_cast<T*>(args.v), static_cast<T>(1.0 - args.lr * args.weight_decay),
                         static_cast<T>(args.beta1), static_cast<T>(1.0 - args.beta1), static_cast<T>(1.0 - args.beta2),
                         static_cast<T>(args.beta2), static_cast<T>(args.lr / correction1),
                         static_cast<T>(1.0 / std::sqrt(correction2)), static_cast<T>(args.eps)});
  });
}

}  // namespace st_moe::cuda
