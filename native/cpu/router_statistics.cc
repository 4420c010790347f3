#include "core/ops/moe.h"
#include "core/router_statistics.h"

#include <cmath>

#include "cpu/logsumexp.h"
#include "cpu/plan.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
struct TokenStatistics {
  const RouterStatisticsArgs& args;
  const T *gate, *logits;

  void count(int64_t t, double* sums) const {
    const int64_t E = args.E, K = args.K, first = t * K;
    double *dispatched = sums + kRouterSums, *top_one = dispatched + E, *of_choice = top_one + E;
    const T* g = gate + first;
    int64_t taken = 0, top = 0;
    for (int64_t k = 0; k < K; ++k) {
      const int32_t e = args.expert_index[first + k];
      check_expert(e, E, first + k, K);
      if (g[k] > g[top] || (g[k] != g[k] && g[top] == g[top])) top = k;
      if (!args.kept[first + k]) continue;
      ++taken;
      dispatched[e] += 1;
      of_choice[k] += 1;
    }
    top_one[args.expert_index[first + top]] += 1;
    sums[kTokens] += 1;
    sums[kDropped] += taken == 0;
  }

  // work [2E]
  void measure(int64_t t, T* work, double* sums) const {
    const int64_t E = args.E;
    const T *l = logits + t * E, largest = row_max(l, E);
    T *shifted = work, *p = work + E;
    for (int64_t e = 0; e < E; ++e) {
      shifted[e] = l[e] - largest;
      p[e] = exp_of(shifted[e]);
    }
    const double total = wide_sum(p, E);
    sums[kEntropy] += std::log(total) - wide_dot(p, shifted, E) / total;
    sums[kConfidence] += 1 / total;
    sums[kLogitNorm] += std::sqrt(wide_dot(l, l, E));
  }
};

void router_statistics(const Context& ctx, const RouterStatisticsArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const TokenStatistics<T> token{args, static_cast<const T*>(args.gate), static_cast<const T*>(args.logits)};
    const int64_t tokens = args.B * args.N, S = args.S, block = max_of<int64_t>(256, S),
                  blocks = ceil_div(tokens, block);
    Scratch<double> partial(blocks * S);
    parallel_blocks(ctx, tokens, block, [&](int64_t begin, int64_t end) {
      double* sums = partial.get() + begin / block * S;
      for (int64_t i = 0; i < S; ++i) sums[i] = 0;
      Scratch<T> work(2 * args.E);
      for (int64_t t = begin; t < end; ++t) {
        if (args.mask && args.mask[t] == 0) continue;
        token.count(t, sums);
        if (token.logits) token.measure(t, work.get(), sums);
      }
    });
    T* out = static_cast<T*>(args.statistics);
    add_partials(partial.get(), blocks, S, out);
    out[kForwards] = 1;
    out[kSlots] =
        static_cast<T>(static_cast<double>(args.B) * static_cast<double>(args.E) * static_cast<double>(args.C));
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
