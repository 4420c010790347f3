#include "cpu/ops.h"

#include <cstring>

#include "cpu/assignments.h"
#include "cpu/simd.h"

namespace st_moe::cpu::ST_MOE_ISA {

void dispatch(const Context& ctx, const DispatchArgs& args) {
  check_slots(args);
  const int64_t slots = args.E * args.B * args.C, row_bytes = args.D * static_cast<int64_t>(dtype_size(args.dtype));
  Scratch<int32_t> holder(slots);
  fill_holders(args, holder.get());
  const char* x = static_cast<const char*>(args.x);
  char* y = static_cast<char*>(args.y);
  if (row_bytes == 0) return;
  parallel_blocks(ctx, slots, rows_per_task(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      if (holder[slot] < 0)
        memset(y + slot * row_bytes, 0, static_cast<size_t>(row_bytes));
      else
        memcpy(y + slot * row_bytes, x + holder[slot] / args.K * row_bytes, static_cast<size_t>(row_bytes));
    }
  });
}

void dispatch_backward(const Context& ctx, const DispatchBackwardArgs& args) {
  check_slots(args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t D = args.D, K = args.K;
    const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
    T *dx = static_cast<T*>(args.dx), *dweight = static_cast<T*>(args.dweight);
    parallel_blocks(ctx, args.B * args.N, rows_per_task(D * (K + 1) * sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const auto row = [&](int64_t k) {
          const int64_t slot = slot_of(args, t * K + k);
          return slot < 0 ? nullptr : dy + slot * D;
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
