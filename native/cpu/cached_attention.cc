#include <cmath>
#include <cstring>

#include "core/ops/attention.h"
#include "core/formulas.h"
#include "cpu/attention_rows.h"
#include "cpu/subnormals.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

static int64_t slot_of(const CachedAttentionArgs& args, int64_t b) {
  return args.slot ? args.slot[b] : b;
}

static void check_places(const CachedAttentionArgs& args) {
  for (int64_t b = 0; b < args.B; ++b) {
    if (args.position[b] < 0 || args.position[b] > args.M - args.N)
      fail(ErrorCode::option, "position must be in [0, %lld], got %d at %lld", static_cast<long long>(args.M - args.N),
           args.position[b], static_cast<long long>(b));
    if (slot_of(args, b) < 0 || slot_of(args, b) >= args.S)
      fail(ErrorCode::option, "slot must be in [0, %lld), got %lld at %lld", static_cast<long long>(args.S),
           static_cast<long long>(slot_of(args, b)), static_cast<long long>(b));
  }
}

static void remember(const CachedAttentionArgs& args, const void* from, void* to) {
  const size_t row = static_cast<size_t>(args.kv_heads * args.d) * dtype_size(args.dtype);
  const size_t rows = static_cast<size_t>(args.N) * row;
  for (int64_t b = 0; rows > 0 && b < args.B; ++b) {
    const size_t at = static_cast<size_t>(slot_of(args, b) * args.M + args.position[b]) * row;
    std::memmove(static_cast<char*>(to) + at, static_cast<const char*>(from) + static_cast<size_t>(b) * rows, rows);
  }
}

// y [d] of one query, which sees the first n rows of keys and values.
template <class T>
static void attend(const T* q, const T* keys, const T* values, int64_t n, int64_t stride, int64_t d, T factor, T* s,
                   T* y) {
  for (int64_t j = 0; j < n; ++j) s[j] = dot(q, keys + j * stride, d);
  const T largest = scale_and_max(s, n, factor);
  for (int64_t j = 0; j < n; ++j) s[j] = exp_of(s[j] - largest);
  const T inverse = T(1) / sum(s, n);
  for (int64_t c = 0; c < d; ++c) y[c] = 0;
  add_rows({s, 0, 1}, 1, values, stride, n, y, 0, d);
  for (int64_t c = 0; c < d; ++c) y[c] *= inverse;
}

template <class T>
static void attend_all(const Context& ctx, const CachedAttentionArgs& args) {
  const T *q = static_cast<const T*>(args.q), *keys = static_cast<const T*>(args.keys);
  const T* values = static_cast<const T*>(args.values);
  T* y = static_cast<T*>(args.y);
  const int64_t stride = args.kv_heads * args.d, group = args.heads / args.kv_heads;
  const int64_t block = max_of<int64_t>(1, kElementBlock / max_of<int64_t>(1, args.M * args.d));
  parallel_blocks(ctx, args.B * args.N * args.heads, block, [&](int64_t begin, int64_t end) {
    const WithoutSubnormals without_subnormals;
    const Scratch<T> s(args.M);
    for (int64_t i = begin; i < end; ++i) {  // i: a head of query n of sequence b
      const int64_t h = i % args.heads, n = i / args.heads % args.N, b = i / args.heads / args.N;
      const int64_t at = slot_of(args, b) * args.M * stride + h / group * args.d;
      attend(q + i * args.d, keys + at, values + at, args.position[b] + n + 1, stride, args.d,
             static_cast<T>(args.scale), s.get(), y + i * args.d);
    }
  });
}

void cached_attention(const Context& ctx, const CachedAttentionArgs& args) {
  check_places(args);
  remember(args, args.k, args.keys);
  remember(args, args.v, args.values);
  dispatch_float(args.dtype, [&](auto zero) { attend_all<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
