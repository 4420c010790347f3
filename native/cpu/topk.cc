#include "cpu/ops.h"
#include "cpu/selection.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

void topk(const Context& ctx, const TopkArgs& args) {
  if (args.K > args.E)
    fail(ErrorCode::shape, "k must be at most the size of the last dimension, %lld, got %lld",
         static_cast<long long>(args.E), static_cast<long long>(args.K));
  if (args.K == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_blocks(ctx, args.T, max_of<int64_t>(1, kElementBlock / 4 / args.E), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        select_row(static_cast<const T*>(args.x) + t * args.E, args.E, args.K, static_cast<T*>(args.value) + t * args.K,
                   args.index + t * args.K);
    });
  });
}

void topk_backward(const Context& ctx, const TopkBackwardArgs& args) {
  if (args.E == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* dvalue = static_cast<const T*>(args.dvalue);
    T* dx = static_cast<T*>(args.dx);
    parallel_blocks(ctx, args.T, max_of<int64_t>(1, kElementBlock / args.E), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        T* row = dx + t * args.E;
        for (int64_t e = 0; e < args.E; ++e) row[e] = 0;
        for (int64_t k = t * args.K; k < (t + 1) * args.K; ++k) {
          const int32_t e = args.index[k];
          if (e < 0 || e >= args.E)
            fail(ErrorCode::option, "index must be in [0, %lld), got %d", static_cast<long long>(args.E), e);
          row[e] = dvalue[k];
        }
      }
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
