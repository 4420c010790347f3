#include "core/ops/moe.h"
#include "cpu/expert_rows.h"

namespace st_moe::cpu::ST_MOE_ISA {

void combine(const Context& ctx, const CombineArgs& args) {
  check_plan(nullptr, args.R, args.row_of, args.T, args.K);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ActivationRows<T> rows(ctx, const_cast<void*>(args.x), args.D, args.D);
    combine_rows(ctx, args.row_of, rows, static_cast<const T*>(args.weight), static_cast<T*>(args.y), args.T, args.K,
                 args.D);
  });
}

// dx [R, D] row = weight · dy of its token; zeros if it is empty.
template <class T>
static void expert_gradient(const Context& ctx, const CombineBackwardArgs& args) {
  const int64_t D = args.D;
  const T *dy = static_cast<const T*>(args.dy), *weight = static_cast<const T*>(args.weight);
  T* dx = static_cast<T*>(args.dx);
  parallel_blocks(ctx, args.R, rows_per_task(D * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t assignment = args.assignment[r];
      T* __restrict to = dx + r * D;
      if (assignment < 0) {
        for (int64_t j = 0; j < D; ++j) to[j] = 0;
        continue;
      }
      const T* __restrict from = dy + assignment / args.K * D;
      for (int64_t j = 0; j < D; ++j) to[j] = weight[assignment] * from[j];
    }
  });
}

void combine_backward(const Context& ctx, const CombineBackwardArgs& args) {
  check_plan(args.assignment, args.R, args.row_of, args.T, args.K);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.dx) expert_gradient<T>(ctx, args);
    if (!args.dweight) return;
    const int64_t D = args.D, K = args.K;
    const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
    T* dweight = static_cast<T*>(args.dweight);
    parallel_blocks(ctx, args.T, rows_per_task(D * (K + 1) * sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * K; i < end * K; ++i) {
        const int64_t r = args.row_of[i];
        dweight[i] = r < 0 ? T(0) : dot(dy + i / K * D, x + r * D, D);
      }
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
