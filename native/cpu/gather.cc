#include "core/ops/layers.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

static inline int64_t checked(int32_t index, int64_t A) {
  if (index < 0 || index >= A)
    fail(ErrorCode::option, "index must be in [0, %lld), got %d", static_cast<long long>(A), index);
  return index;
}

void gather(const Context& ctx, const GatherArgs& args) {
  dispatch_size(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    T* y = static_cast<T*>(args.y);
    const int64_t A = args.A, K = args.K, I = args.I;
    parallel_blocks(ctx, args.T * K * I, kElementBlock, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end;) {  // row by row of y
        const int64_t row = at / I, last = min_of(end, (row + 1) * I);
        const T* from = x + row / K * A * I - row * I;
        for (; at < last; ++at) y[at] = from[checked(args.index[at], A) * I + at];
      }
    });
  });
}

constexpr int64_t kColumns = 512;  // that one task adds to

// A task owns some columns of dx, and adds to each in the order of k.
template <class T>
static void add_entries(const Context& ctx, const GatherBackwardArgs& args) {
  const T* dy = static_cast<const T*>(args.dy);
  T* dx = static_cast<T*>(args.dx);
  const int64_t A = args.A, K = args.K, I = args.I, chunks = ceil_div(I, kColumns);
  const int64_t work = max_of<int64_t>(1, (A + K) * min_of(kColumns, I));
  const auto task_of = [&](int64_t task) {
    const int64_t t = task / chunks, first = task % chunks * kColumns, last = min_of(I, first + kColumns);
    T* to = dx + t * A * I;
    for (int64_t a = 0; a < A; ++a)
      for (int64_t j = first; j < last; ++j) to[a * I + j] = 0;
    for (int64_t row = t * K; row < (t + 1) * K; ++row)
      for (int64_t j = first; j < last; ++j) to[checked(args.index[row * I + j], A) * I + j] += dy[row * I + j];
  };
  parallel_blocks(ctx, args.T * chunks, max_of<int64_t>(1, kElementBlock / work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) task_of(task);
  });
}

void gather_backward(const Context& ctx, const GatherBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { add_entries<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
