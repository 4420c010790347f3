#include "cpu/ops.h"

#include "cpu/assignments.h"
#include "cpu/simd.h"

namespace st_moe::cpu::ST_MOE_ISA {

void combine(const Context& ctx, const CombineArgs& args) {
  check_slots(args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t D = args.D, K = args.K;
    const T *x = static_cast<const T*>(args.x), *weight = static_cast<const T*>(args.weight);
    T* y = static_cast<T*>(args.y);
    parallel_blocks(ctx, args.B * args.N, rows_per_task(D * (K + 1) * sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        weighted_sum(y + t * D, D, K, weight + t * K, [&](int64_t k) {
          const int64_t slot = slot_of(args, t * K + k);
          return slot < 0 ? nullptr : x + slot * D;
        });
    });
  });
}

// dx [E, B, C, D] row = weight · dy of the token in the slot; zeros in empty slots.
template <class T>
static void expert_gradient(const Context& ctx, const CombineBackwardArgs& args) {
  const int64_t slots = args.E * args.B * args.C, D = args.D;
  const T *dy = static_cast<const T*>(args.dy), *weight = static_cast<const T*>(args.weight);
  T* dx = static_cast<T*>(args.dx);
  Scratch<int32_t> holder(slots);
  fill_holders(args, holder.get());
  parallel_blocks(ctx, slots, rows_per_task(D * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      T* __restrict to = dx + slot * D;
      if (holder[slot] < 0) {
        for (int64_t j = 0; j < D; ++j) to[j] = 0;
        continue;
      }
      const T* __restrict from = dy + holder[slot] / args.K * D;
      const T w = weight[holder[slot]];
      for (int64_t j = 0; j < D; ++j) to[j] = w * from[j];
    }
  });
}

void combine_backward(const Context& ctx, const CombineBackwardArgs& args) {
  check_slots(args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.dx) expert_gradient<T>(ctx, args);
    if (!args.dweight) return;
    const int64_t D = args.D, K = args.K;
    const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
    T* dweight = static_cast<T*>(args.dweight);
    parallel_blocks(ctx, args.B * args.N, rows_per_task(D * (K + 1) * sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * K; i < end * K; ++i) {
        const int64_t slot = slot_of(args, i);
        dweight[i] = slot < 0 ? T(0) : dot(dy + i / K * D, x + slot * D, D);
      }
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
