#include "core/ops/layers.h"
#include "cpu/logsumexp.h"

namespace st_moe::cpu::ST_MOE_ISA {

// The number of rows whose target is not ignored. Throws at the first target outside the vocabulary.
static int64_t count_targets(const int32_t* target, int64_t T, int64_t V, int32_t ignore_index) {
  int64_t counted = 0;
  for (int64_t t = 0; t < T; ++t) {
    if (target[t] == ignore_index) continue;
    if (target[t] < 0 || target[t] >= V)
      fail(ErrorCode::option, "target must be in [0, %lld) or %d (ignoreIndex), got %d at %lld",
           static_cast<long long>(V), ignore_index, target[t], static_cast<long long>(t));
    ++counted;
  }
  return counted;
}

void cross_entropy(const Context& ctx, const CrossEntropyArgs& args) {
  const int64_t counted = count_targets(args.target, args.T, args.V, args.ignore_index), V = args.V;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* logits = static_cast<const T*>(args.logits);
    T* lse = static_cast<T*>(args.lse);
    Scratch<double> losses(args.T);
    const int64_t rows = max_of<int64_t>(1, kElementBlock / max_of<int64_t>(1, V));
    parallel_blocks(ctx, args.T, rows, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const T* row = logits + t * V;
        const double value = logsumexp(row, V);
        lse[t] = static_cast<T>(value);
        const bool counts = args.target[t] != args.ignore_index;
        losses[t] = counts ? value - static_cast<double>(row[args.target[t]]) : 0.0;
      }
    });
    const double total = wide_sum(losses.get(), args.T);
    *static_cast<T*>(args.loss) = counted ? static_cast<T>(total / static_cast<double>(counted)) : T(0);
  });
}

void cross_entropy_backward(const Context& ctx, const CrossEntropyBackwardArgs& args) {
  const int64_t counted = count_targets(args.target, args.T, args.V, args.ignore_index), V = args.V;
  if (V == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *logits = static_cast<const T*>(args.logits), *lse = static_cast<const T*>(args.lse);
    T* dlogits = static_cast<T*>(args.dlogits);
    const double upstream = static_cast<double>(*static_cast<const T*>(args.dloss));
    const T factor = static_cast<T>(counted ? upstream / static_cast<double>(counted) : 0.0);
    parallel_blocks(ctx, args.T, max_of<int64_t>(1, kElementBlock / V), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const T* __restrict row = logits + t * V;
        T* __restrict out = dlogits + t * V;
        const int32_t target = args.target[t];
        if (target == args.ignore_index) {
          for (int64_t j = 0; j < V; ++j) out[j] = 0;
          continue;
        }
        const T shift = lse[t];
        for (int64_t j = 0; j < V; ++j) out[j] = factor * exp_of(row[j] - shift);
        out[target] = factor * (exp_of(row[target] - shift) - T(1));
      }
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
