#include <cstring>

#include "core/ops/layers.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

static void check_indices(const int32_t* index, int64_t T, int64_t V) {
  for (int64_t t = 0; t < T; ++t)
    if (index[t] < 0 || index[t] >= V)
      fail(ErrorCode::option, "index must be in [0, %lld), got %d at %lld", static_cast<long long>(V), index[t],
           static_cast<long long>(t));
}

void embedding(const Context& ctx, const EmbeddingArgs& args) {
  check_indices(args.index, args.T, args.V);
  const size_t row = static_cast<size_t>(args.D) * dtype_size(args.dtype);
  const char* w = static_cast<const char*>(args.w);
  char* y = static_cast<char*>(args.y);
  if (row == 0) return;
  parallel_blocks(ctx, args.R * args.T, max_of<int64_t>(1, kElementBlock / args.D), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i / args.T * args.V + args.index[i % args.T];
      std::memcpy(y + static_cast<size_t>(i) * row, w + static_cast<size_t>(from) * row, row);
    }
  });
}

// Sorts tokens by index (a stable counting sort), so that one task adds to each row of dw.
template <class T>
static void add_tokens(const Context& ctx, const EmbeddingBackwardArgs& args) {
  const T* dy = static_cast<const T*>(args.dy);
  T* dw = static_cast<T*>(args.dw);
  const int64_t D = args.D, V = args.V;
  Scratch<int64_t> end(V + 1), order(args.T);  // of row v: order[end[v − 1] … end[v]), with end[−1] = 0
  for (int64_t v = 0; v <= V; ++v) end[v] = 0;
  for (int64_t t = 0; t < args.T; ++t) ++end[args.index[t] + 1];
  for (int64_t v = 0; v < V; ++v) end[v + 1] += end[v];
  for (int64_t t = 0; t < args.T; ++t) order[end[args.index[t]]++] = t;
  const int64_t tokens_per_row = ceil_div(args.T, V) + 1;
  const int64_t rows = max_of<int64_t>(1, kElementBlock / max_of<int64_t>(1, D * tokens_per_row));
  parallel_blocks(ctx, args.R * V, rows, [&](int64_t first, int64_t last) {
    for (int64_t to = first; to < last; ++to) {
      T* row = dw + to * D;
      const T* terms = dy + to / V * args.T * D;
      const int64_t v = to % V;
      for (int64_t j = 0; j < D; ++j) row[j] = 0;
      for (int64_t i = v == 0 ? 0 : end[v - 1]; i < end[v]; ++i) {
        const T* from = terms + order[i] * D;
#pragma GCC ivdep
        for (int64_t j = 0; j < D; ++j) row[j] += from[j];
      }
    }
  });
}

void embedding_backward(const Context& ctx, const EmbeddingBackwardArgs& args) {
  check_indices(args.index, args.T, args.V);
  if (args.V == 0) return;
  dispatch_float(args.dtype, [&](auto zero) { add_tokens<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
