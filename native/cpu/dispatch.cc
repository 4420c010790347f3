#include <cstring>

#include "core/ops/moe.h"
#include "cpu/plan.h"
#include "cpu/simd.h"

namespace st_moe::cpu::ST_MOE_ISA {

void dispatch(const Context& ctx, const DispatchArgs& args) {
  check_plan(args.assignment, args.R, args.row_of, args.T, args.K);
  const int64_t row_bytes = args.D * static_cast<int64_t>(dtype_size(args.dtype));
  const char* x = static_cast<const char*>(args.x);
  char* y = static_cast<char*>(args.y);
  if (row_bytes == 0) return;
  parallel_blocks(ctx, args.R, rows_per_task(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t assignment = args.assignment[r];
      if (assignment < 0)
        memset(y + r * row_bytes, 0, static_cast<size_t>(row_bytes));
      else
        memcpy(y + r * row_bytes, x + assignment / args.K * row_bytes, static_cast<size_t>(row_bytes));
    }
  });
}

void dispatch_backward(const Context& ctx, const DispatchBackwardArgs& args) {
  check_plan(nullptr, args.R, args.row_of, args.T, args.K);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t D = args.D, K = args.K;
    const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
    T *dx = static_cast<T*>(args.dx), *dweight = static_cast<T*>(args.dweight);
    parallel_blocks(ctx, args.T, rows_per_task(D * (K + 1) * sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const auto row = [&](int64_t k) {
          const int64_t r = args.row_of[t * K + k];
          return r < 0 ? nullptr : dy + r * D;
        };
        if (dx) weighted_sum<T>(dx + t * D, D, K, nullptr, row);
        if (!dweight) continue;
        for (int64_t k = 0; k < K; ++k) {
          const T* dy_row = row(k);
          dweight[t * K + k] = dy_row ? dot(x + t * D, dy_row, D) : T(0);
        }
      }
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
