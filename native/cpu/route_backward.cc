#include "cpu/ops.h"

#include "core/formulas.h"
#include "cpu/assignments.h"
#include "cpu/gemm.h"
#include "cpu/simd.h"
#include "cpu/soft_topk.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
struct RouterGradient {
  const RouteBackwardArgs& args;
  const T *dweight, *gate, *probs, *logits, *lse, *density;
  double balance_scale, z_scale;  // upstream gradients times E / sequences, and 2 / tokens

  explicit RouterGradient(const RouteBackwardArgs& a)
      : args(a),
        dweight(static_cast<const T*>(a.dweight)),
        gate(static_cast<const T*>(a.gate)),
        probs(static_cast<const T*>(a.probs)),
        logits(static_cast<const T*>(a.logits)),
        lse(static_cast<const T*>(a.lse)),
        density(static_cast<const T*>(a.density)),
        balance_scale(0),
        z_scale(0) {}

  static double scalar(const void* value) { return value ? static_cast<double>(*static_cast<const T*>(value)) : 0; }

  // token_count [B]: tokens that are not masked
  void set_scales(const int64_t* token_count) {
    int64_t tokens = 0, sequences = 0;
    for (int64_t b = 0; b < args.B; ++b) {
      tokens += token_count[b];
      sequences += token_count[b] > 0;
    }
    if (!args.training || tokens == 0) return;
    const double dtotal = scalar(args.dtotal);
    balance_scale = (scalar(args.dbalance) + args.balance_coef * dtotal) * static_cast<double>(args.E) /
                    static_cast<double>(sequences);
    z_scale = (scalar(args.dz) + args.z_coef * dtotal) * 2 / static_cast<double>(tokens);
  }

  // ds [E] = gradient of the probabilities through the gates of token t. work [4E]
  void through_gates(int64_t t, T* ds, T* work) const {
    const int64_t E = args.E, K = args.K;
    for (int64_t e = 0; e < E; ++e) ds[e] = 0;
    if (!dweight) return;
    const T *s = probs + t * E, *g = gate + t * K;
    const int32_t* index = args.expert_index + t * K;
    T *c = work, *dc = work + E;
    SoftTopk<T> soft(E, K, work + 2 * E);
    if (args.differentiable_topk) soft.forward(s, c);
    T* dscore = args.differentiable_topk ? dc : ds;
    const T* score = args.differentiable_topk ? c : s;

    T total = 0, mean = 0;
    for (int64_t k = 0; k < K; ++k) {
      total += score[index[k]];
      if (args.kept[t * K + k]) mean += dweight[t * K + k] * g[k];
    }
    const T eps = static_cast<T>(args.eps);
    const bool floored = total < eps;
    if (args.differentiable_topk)
      for (int64_t e = 0; e < E; ++e) dc[e] = 0;
    for (int64_t k = 0; k < K; ++k) {
      const T dg = args.kept[t * K + k] ? dweight[t * K + k] : T(0);
      dscore[index[k]] += floored ? dg / eps : (dg - mean) / total;
    }
    if (args.differentiable_topk) soft.backward(s, dc, ds, work + 3 * E);
  }

  // dl [E] = gradient of the logits of token t; tokens: those of its sequence that are not masked
  void logits_row(int64_t t, int64_t tokens, T* __restrict dl, T* work) const {
    const int64_t E = args.E;
    const T* __restrict s = probs + t * E;
    const T* __restrict l = logits + t * E;
    const T* __restrict f = density + t / args.N * E;
    through_gates(t, dl, work);
    if (args.training) {
      const T scale = static_cast<T>(balance_scale / static_cast<double>(tokens));
      for (int64_t e = 0; e < E; ++e) dl[e] += scale * f[e];
    }
    const T mean = dot(s, dl, E);
    for (int64_t e = 0; e < E; ++e) dl[e] = s[e] * (dl[e] - mean);
    if (!args.training) return;
    // The noise is in s, not in l.
    const T scale = static_cast<T>(z_scale * static_cast<double>(lse[t]));
    for (int64_t e = 0; e < E; ++e) dl[e] += scale * (args.noisy ? exp_of(l[e] - lse[t]) : s[e]);
  }
};

// The tokens that are not masked, in order, and their number in each sequence.
struct Unmasked {
  Scratch<int32_t> token;
  Scratch<int64_t> in_sequence;
  int64_t count = 0;

  explicit Unmasked(const RouteBackwardArgs& args) : token(args.B * args.N), in_sequence(args.B) {
    for (int64_t b = 0; b < args.B; ++b) {
      const int64_t before = count;
      for (int64_t t = b * args.N; t < (b + 1) * args.N; ++t)
        if (!args.mask || args.mask[t] != 0) token[count++] = static_cast<int32_t>(t);
      in_sequence[b] = count - before;
    }
  }
};

template <class T>
static void route_backward_as(const Context& ctx, const RouteBackwardArgs& args) {
  const int64_t D = args.D, E = args.E, K = args.K, tokens = args.B * args.N;
  check_assignment_count(tokens, K);
  for (int64_t i = 0; i < tokens * K; ++i) check_expert(args.expert_index[i], E, i, K);
  const Unmasked unmasked(args);
  RouterGradient<T> gradient(args);
  gradient.set_scales(unmasked.in_sequence.get());

  // dl holds the rows that are not masked: a masked row of x may be anything, even NaN, and must not reach dw.
  Scratch<T> dl(unmasked.count * E);
  parallel_blocks(ctx, unmasked.count, 64, [&](int64_t begin, int64_t end) {
    Scratch<T> work(4 * E);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = unmasked.token[i];
      gradient.logits_row(t, unmasked.in_sequence[t / args.N], dl.get() + i * E, work.get());
    }
  });

  const T *x = static_cast<const T*>(args.x), *w = static_cast<const T*>(args.w);
  const int32_t* rows = args.mask ? unmasked.token.get() : nullptr;
  if (args.dw) {
    const GemmProblem<T> problem{E, D, unmasked.count, {dl.get(), 1, E}, {x, D, 1, rows}, static_cast<T*>(args.dw), D};
    gemm(ctx, &problem, 1);
  }
  if (!args.dx) return;
  T* dx = static_cast<T*>(args.dx);
  Scratch<T> packed(args.mask ? unmasked.count * D : 0);
  const GemmProblem<T> problem{unmasked.count, D, E, {dl.get(), E, 1}, {w, D, 1}, args.mask ? packed.get() : dx, D};
  gemm(ctx, &problem, 1);
  if (!args.mask) return;
  Scratch<int32_t> packed_row(tokens);
  for (int64_t t = 0; t < tokens; ++t) packed_row[t] = -1;
  for (int64_t i = 0; i < unmasked.count; ++i) packed_row[unmasked.token[i]] = static_cast<int32_t>(i);
  parallel_blocks(ctx, tokens, rows_per_task(D * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      weighted_sum<T>(dx + t * D, D, 1, nullptr,
                      [&](int64_t) { return packed_row[t] < 0 ? nullptr : packed.get() + packed_row[t] * D; });
  });
}

void route_backward(const Context& ctx, const RouteBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { route_backward_as<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
