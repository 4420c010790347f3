#include <cmath>

#include "cuda/kernel.cuh"
#include "cuda/ops.h"
#include "cuda/per_step.cuh"

namespace st_moe::cuda {

enum { kDecay, kBeta1, kBlend1, kBlend2, kBeta2, kRate, kInverseRoot, kEps };

FactorList adamw_factors(int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay) {
  const double count = static_cast<double>(step);
  const double correction1 = 1.0 - std::pow(beta1, count), correction2 = 1.0 - std::pow(beta2, count);
  return {{1.0 - lr * weight_decay, beta1, 1.0 - beta1, 1.0 - beta2, beta2, lr / correction1,
           1.0 / std::sqrt(correction2), eps}};
}

// In the order of torch.optim.AdamW; see cpu/adamw.cc.
template <class T>
struct Adamw {
  T* p;
  const T* g;
  T *m, *v;
  Factors<T> f;
  __device__ void operator()(int64_t i) const {
    const T difference = g[i] - m[i], blend1 = f[kBlend1];
    const T first = blend1 >= T(0.5) ? g[i] - difference * f[kBeta1] : m[i] + difference * blend1;
    const T second = v[i] * f[kBeta2] + g[i] * g[i] * f[kBlend2];
    m[i] = first;
    v[i] = second;
    p[i] = p[i] * f[kDecay] - f[kRate] * (first / (sqrt(second) * f[kInverseRoot] + f[kEps]));
  }
};

void adamw(const Context& ctx, const AdamwArgs& args) {
  const FactorList factors = adamw_factors(args.step, args.lr, args.beta1, args.beta2, args.eps, args.weight_decay);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(ctx, args.size,
                Adamw<T>{static_cast<T*>(args.p), static_cast<const T*>(args.g), static_cast<T*>(args.m),
                         static_cast<T*>(args.v), Factors<T>(ctx, args.step, factors)});
  });
}

}  // namespace st_moe::cuda
