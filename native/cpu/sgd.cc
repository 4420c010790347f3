#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
static void update(const Context& ctx, const SgdArgs& args) {
  const T lr = static_cast<T>(args.lr), decay = static_cast<T>(args.weight_decay);
  const T momentum = static_cast<T>(args.momentum);
  parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
    T* __restrict p = static_cast<T*>(args.p);
    const T* __restrict g = static_cast<const T*>(args.g);
    T* __restrict buffer = static_cast<T*>(args.buffer);
    if (!buffer) {
      for (int64_t i = begin; i < end; ++i) p[i] -= lr * (g[i] + decay * p[i]);
    } else if (args.step <= 1) {  // the buffer may hold anything yet
      for (int64_t i = begin; i < end; ++i) {
        buffer[i] = g[i] + decay * p[i];
        p[i] -= lr * buffer[i];
      }
    } else {
      for (int64_t i = begin; i < end; ++i) {
        buffer[i] = momentum * buffer[i] + g[i] + decay * p[i];
        p[i] -= lr * buffer[i];
      }
    }
  });
}

void sgd(const Context& ctx, const SgdArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { update<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
