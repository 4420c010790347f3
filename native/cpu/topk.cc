#include "core/ops/moe.h"
#include "cpu/selection.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

// The order of selection.h.
template <class T>
static inline bool before(T a, int32_t i, T b, int32_t j) {
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan != b_nan) return a_nan;
  if (a_nan || a == b) return i < j;
  return a > b;
}

// A heap [n] with the last entry of the order at its root; `hole` is the only index that may violate it.
template <class T>
static inline void sift_down(T* value, int32_t* index, int64_t n, int64_t hole) {
  const T v = value[hole];
  const int32_t i = index[hole];
  for (int64_t child = 2 * hole + 1; child < n; child = 2 * hole + 1) {
    if (child + 1 < n && before(value[child], index[child], value[child + 1], index[child + 1])) ++child;
    if (!before(v, i, value[child], index[child])) break;
    value[hole] = value[child];
    index[hole] = index[child];
    hole = child;
  }
  value[hole] = v;
  index[hole] = i;
}

// The outputs are the heap.
template <class T>
void select_many(const T* x, int64_t E, int64_t K, T* value, int32_t* index) {
  for (int64_t e = 0; e < K; ++e) {
    value[e] = x[e];
    index[e] = static_cast<int32_t>(e);
  }
  for (int64_t hole = K / 2 - 1; hole >= 0; --hole) sift_down(value, index, K, hole);
  for (int64_t e = K; e < E; ++e) {
    if (x[e] <= value[0]) continue;  // most entries; equal ones have the higher index
    if (!before(x[e], static_cast<int32_t>(e), value[0], index[0])) continue;
    value[0] = x[e];
    index[0] = static_cast<int32_t>(e);
    sift_down(value, index, K, 0);
  }
  for (int64_t n = K - 1; n > 0; --n) {
    const T v = value[0];
    const int32_t i = index[0];
    value[0] = value[n];
    index[0] = index[n];
    value[n] = v;
    index[n] = i;
    sift_down(value, index, n, 0);
  }
}
template void select_many(const float*, int64_t, int64_t, float*, int32_t*);
template void select_many(const double*, int64_t, int64_t, double*, int32_t*);

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
