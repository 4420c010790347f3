#include "cuda/kernel.cuh"
#include "cuda/ops.h"
#include "cuda/per_step.cuh"

namespace st_moe::cuda {

enum { kRate, kMomentum, kDecay, kIsFirst };

// At the first step the buffer may hold anything.
FactorList sgd_factors(int64_t step, double lr, double momentum, double weight_decay) {
  return {{lr, momentum, weight_decay, step <= 1 ? 1.0 : 0.0}};
}

template <class T>
struct Sgd {
  T* p;
  const T* g;
  T* buffer;  // or null
  Factors<T> f;
  __device__ void operator()(int64_t i) const {
    T step = g[i] + f[kDecay] * p[i];
    if (buffer) {
      if (f[kIsFirst] == T(0)) step += f[kMomentum] * buffer[i];
      buffer[i] = step;
    }
    p[i] -= f[kRate] * step;
  }
};

void sgd(const Context& ctx, const SgdArgs& args) {
  const FactorList factors = sgd_factors(args.step, args.lr, args.momentum, args.weight_decay);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(ctx, args.size,
                Sgd<T>{static_cast<T*>(args.p), static_cast<const T*>(args.g), static_cast<T*>(args.buffer),
                       Factors<T>(ctx, args.step, factors)});
  });
}

}  // namespace st_moe::cuda
