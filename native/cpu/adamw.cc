#include <cmath>

#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// Decoupled weight decay, Loshchilov and Hutter (arXiv 1711.05101), in the order of torch.optim.AdamW.
template <class T>
static void update(const Context& ctx, const AdamwArgs& args) {
  const double step = static_cast<double>(args.step);
  const double correction1 = 1.0 - std::pow(args.beta1, step), correction2 = 1.0 - std::pow(args.beta2, step);
  const T decay = static_cast<T>(1.0 - args.lr * args.weight_decay);
  const T blend1 = static_cast<T>(1.0 - args.beta1), blend2 = static_cast<T>(1.0 - args.beta2);
  const T beta1 = static_cast<T>(args.beta1), beta2 = static_cast<T>(args.beta2);
  const T rate = static_cast<T>(args.lr / correction1);
  const bool from_gradient = blend1 >= T(0.5);  // as torch.lerp: from the nearer end, or a small g drowns in a large m
  const T inverse_root = static_cast<T>(1.0 / std::sqrt(correction2)), eps = static_cast<T>(args.eps);
  parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
    T* __restrict p = static_cast<T*>(args.p);
    const T* __restrict g = static_cast<const T*>(args.g);
    T* __restrict m = static_cast<T*>(args.m), * __restrict v = static_cast<T*>(args.v);
    for (int64_t i = begin; i < end; ++i) {
      const T difference = g[i] - m[i];
      const T first = from_gradient ? g[i] - difference * beta1 : m[i] + difference * blend1;
      const T second = v[i] * beta2 + g[i] * g[i] * blend2;
      m[i] = first;
      v[i] = second;
      p[i] = p[i] * decay - rate * (first / (std::sqrt(second) * inverse_root + eps));
    }
  });
}

void adamw(const Context& ctx, const AdamwArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { update<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
