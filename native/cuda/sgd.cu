#include "cuda/kernel.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

template <class T>
struct Sgd {
  T* p;
  const T* g;
  T* buffer;  // or null
  T lr, momentum, decay;
  bool first;  // the buffer may hold anything yet
  __device__ void operator()(int64_t i) const {
    T step = g[i] + decay * p[i];
    if (buffer) {
      if (!first) step += momentum * buffer[i];
      buffer[i] = step;
    }
    p[i] -= lr * step;
  }
};

void sgd(const Context& ctx, const SgdArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(ctx, args.size,
                Sgd<T>{static_cast<T*>(args.p), static_cast<const T*>(args.g), static_cast<T*>(args.buffer),
                       static_cast<T>(args.lr), static_cast<T>(args.momentum), static_cast<T>(args.weight_decay),
                       args.step <= 1});
  });
}

}  // namespace st_moe::cuda
