#include "core/formulas.h"
#include "core/router.h"
#include "cpu/plan.h"
#include "cpu/router.h"
#include "cpu/simd.h"
#include "cpu/soft_topk.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
struct RouterGradient {
  const RouteBackwardArgs& args;
  const T *dweight, *gate, *probs, *logits, *lse, *density, *second_density;
  double balance_scale, z_scale;  // upstream gradients times E / sequences, and 2 / tokens

  explicit RouterGradient(const RouteBackwardArgs& a)
      : args(a),
        dweight(static_cast<const T*>(a.dweight)),
        gate(static_cast<const T*>(a.gate)),
        probs(static_cast<const T*>(a.probs)),
        logits(static_cast<const T*>(a.logits)),
        lse(static_cast<const T*>(a.lse)),
        density(static_cast<const T*>(a.density)),
        second_density(static_cast<const T*>(a.second_density)),
        balance_scale(0),
        z_scale(0) {}

  void set_scales(const Unmasked& unmasked) {
    int64_t sequences = 0, whole = 0;
    for (int64_t b = 0; b < args.B; ++b) sequences += args.importance || unmasked.in_sequence(b) > 0;
    for (int64_t i = 0; i < unmasked.count; ++i) whole += is_whole(args.mask, unmasked.token[i]);
    if (!args.training || unmasked.count == 0) return;
    const auto losses = LossGradients<T>::of(args);
    balance_scale = losses.balance * static_cast<double>(args.E) / static_cast<double>(sequences);
    z_scale = losses.z * 2 / static_cast<double>(max_of<int64_t>(1, whole));
  }

  // That of a token with one expert is the same by the experts that were kept.
  GateNormalization normalization(int64_t t) const {
    const bool one = args.gate_normalization == GateNormalization::topk && is_partial(args.mask, t);
    return one ? GateNormalization::kept : args.gate_normalization;
  }

  // Calls add(e, gradient of the score) for each expert e of token t; score(e) is its score.
  template <class Score, class Add>
  void through_gates(int64_t t, Score&& score, Add&& add) const {
    const int64_t K = args.K;
    const T *g = gate + t * K, *dw = dweight + t * K;
    const int32_t *index = args.expert_index + t * K, *kept = args.kept + t * K;
    ScoreGradient<T> gradient{normalization(t), static_cast<T>(args.eps)};
    for (int64_t k = 0; k < K; ++k) gradient.add_score(score(index[k]), kept[k] != 0);
    for (int64_t k = 0; k < K; ++k) gradient.add_weight(score(index[k]), g[k], kept[k] != 0, dw[k]);
    for (int64_t k = 0; k < K; ++k) add(index[k], gradient.of(kept[k] != 0, dw[k]));
  }

  // ds [E] = gradient of the probabilities of token t through its gates. work [4E]
  void through_probabilities(int64_t t, T* ds, T* work) const {
    const int64_t E = args.E, K = args.K;
    for (int64_t e = 0; e < E; ++e) ds[e] = 0;
    if (!dweight || is_sigmoid(args.score_function)) return;
    const T* s = probs + t * E;
    T *c = work, *dc = work + E;
    SoftTopk<T> soft(E, K, work + 2 * E);
    if (args.differentiable_topk) soft.forward(s, c);
    T* dscore = args.differentiable_topk ? dc : ds;
    const T* score = args.differentiable_topk ? c : s;
    if (args.differentiable_topk)
      for (int64_t e = 0; e < E; ++e) dc[e] = 0;
    through_gates(t, [=](int32_t e) { return score[e]; }, [=](int32_t e, T gradient) { dscore[e] += gradient; });
    if (args.differentiable_topk) soft.backward(s, dc, ds, work + 3 * E);
  }

  // ds [E] += gradient of the probabilities of token t through the loss of second places
  void through_second_place(int64_t t, T scale, T* ds) const {
    const T *s = probs + t * args.E, *f2 = second_density + t / args.N * args.E;
    const int32_t first = is_partial(args.mask, t) ? -1 : args.expert_index[t * args.K];
    SecondPlaceGradient<T> gradient{scale};
    for (int64_t e = 0; e < args.E; ++e) gradient.sum += e == first ? T(0) : s[e];
    for (int64_t e = 0; e < args.E; ++e)
      if (e != first) gradient.add(s[e], f2[e]);
    for (int64_t e = 0; e < args.E; ++e) ds[e] += e == first ? T(0) : gradient.of(f2[e]);
  }

  // dl [E] = gradient of the logits of token t; tokens: those of its sequence over which the losses are means
  void logits_row(int64_t t, int64_t tokens, T* __restrict dl, T* work) const {
    const int64_t E = args.E;
    const T* __restrict s = probs + t * E;
    const T* __restrict l = logits + t * E;
    const T* __restrict f = density + t / args.N * E;
    through_probabilities(t, dl, work);
    const bool in_losses = args.training && is_whole(args.mask, t);
    const T balance = static_cast<T>(balance_scale / static_cast<double>(tokens));
    for (int64_t e = 0; in_losses && e < E; ++e) dl[e] += balance * f[e];
    if (args.training && second_density) through_second_place(t, balance / 2, dl);
    const T mean = dot(s, dl, E);
    for (int64_t e = 0; e < E; ++e) dl[e] = s[e] * (dl[e] - mean);
    if (dweight && is_sigmoid(args.score_function))
      through_gates(
          t, [=](int32_t e) { return sigmoid(l[e]); },
          [=](int32_t e, T gradient) { dl[e] += gradient * sigmoid_grad(l[e]); });
    if (!in_losses) return;
    // The noise is in s, not in l.
    const T scale = static_cast<T>(z_scale * static_cast<double>(lse[t]));
    for (int64_t e = 0; e < E; ++e) dl[e] += scale * (args.noise_gates ? exp_of(l[e] - lse[t]) : s[e]);
  }
};

template <class T>
static void route_backward_as(const Context& ctx, const RouteBackwardArgs& args) {
  const int64_t E = args.E, K = args.K, tokens = args.B * args.N;
  check_assignment_count(tokens, K);
  for (int64_t i = 0; i < tokens * K; ++i) check_expert(args.expert_index[i], E, i, K);
  const Unmasked unmasked(args);
  RouterGradient<T> gradient(args);
  gradient.set_scales(unmasked);

  Scratch<T> dl(unmasked.count * E);
  parallel_blocks(ctx, unmasked.count, 64, [&](int64_t begin, int64_t end) {
    Scratch<T> work(4 * E);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = unmasked.token[i];
      const int64_t counted = args.importance ? args.N : unmasked.in_sequence(t / args.N);
      gradient.logits_row(t, counted, dl.get() + i * E, work.get());
    }
  });

  input_gradients(ctx, args, unmasked, dl.get());
}

void route_backward(const Context& ctx, const RouteBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { route_backward_as<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
