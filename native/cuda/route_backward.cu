#include "core/formulas.h"
#include "core/router.h"
#include "cuda/plan.cuh"
#include "cuda/router.cuh"
#include "cuda/soft_topk.cuh"

namespace st_moe::cuda {

// dl [B, N, E] = gradient of the logits, a token by a warp. Lane l touches the entries l, l + 32, … of a row only.
// Rows of masked tokens are zero.
template <class T>
struct LogitsGradient {
  const T* dweight;
  LossGradients<T> losses;
  const int32_t *mask, *expert_index, *kept;
  const T *gate, *probs, *logits, *lse, *density, *second_density;
  T* dl;
  int64_t B, N, E, K;
  ScoreGradient<T> no_scores;  // the sums before the first
  bool noise_gates, training, differentiable_topk, sigmoids, importance;
  UnmaskedTokens unmasked;
  Stream::ErrorFlag* error_flag;

  __device__ bool expert_at(int64_t i, int32_t* expert) const {
    *expert = expert_index[i];
    if (*expert >= 0 && *expert < E) return true;
    report_error(error_flag, kExpertError, *expert);
    return false;
  }

  // Calls add(e, gradient of the score) for each expert e of token t, on the lane that has entry e; score(e) is its
  // score.
  template <class Score, class Add>
  __device__ void through_gates(int64_t t, int lane, Score&& score, Add&& add) const {
    ScoreGradient<T> gradient = no_scores;
    // That of a token with one expert is the same by the experts that were kept.
    if (gradient.normalization == GateNormalization::topk && is_partial(mask, t))
      gradient.normalization = GateNormalization::kept;
    int32_t expert;
    const auto each_score = [&](auto&& f) {
      for (int64_t k = lane; k < K; k += kWarp)
        if (expert_at(t * K + k, &expert)) f(score(expert), t * K + k);
    };
    each_score([&](T value, int64_t i) { gradient.add_score(value, kept[i] != 0); });
    gradient.total = warp_reduce(gradient.total, Sum{});
    each_score([&](T value, int64_t i) { gradient.add_weight(value, gate[i], kept[i] != 0, dweight[i]); });
    gradient.mean = warp_reduce(gradient.mean, Sum{});
    for (int64_t i = t * K; i < (t + 1) * K; ++i) {
      expert = expert_index[i];
      if (expert < 0 || expert >= E || expert % kWarp != lane) continue;
      add(expert, gradient.of(kept[i] != 0, dweight[i]));
    }
  }

  // ds [E] = gradient of the probabilities of token t through its gates
  __device__ void through_probabilities(int64_t t, T* ds, int lane) const {
    for (int64_t e = lane; e < E; e += kWarp) ds[e] = 0;
    if (!dweight || sigmoids) return;
    const T* s = probs + t * E;
    const SoftTopk<T> soft_topk(E, K, lane);
    T a[kSoftTopkIterations + 1] = {};
    if (differentiable_topk) soft_topk.descend(s, a);
    through_gates(
        t, lane,
        [&](int32_t e) { return differentiable_topk ? SoftTopk<T>::score(s[e], a[kSoftTopkIterations]) : s[e]; },
        [&](int32_t e, T gradient) { ds[e] += gradient; });
    if (differentiable_topk) soft_topk.backward(s, a, ds);
  }

  // ds [E] += gradient of the probabilities of token t through the loss of second places
  __device__ void through_second_place(int64_t t, T scale, T* ds, int lane) const {
    const T *s = probs + t * E, *f2 = second_density + t / N * E;
    const int32_t first = is_partial(mask, t) ? -1 : expert_index[t * K];
    T sum = 0;
    for (int64_t e = lane; e < E; e += kWarp) sum += e == first ? T(0) : s[e];
    SecondPlaceGradient<T> gradient{scale};
    gradient.sum += warp_reduce(sum, Sum{});
    for (int64_t e = lane; e < E; e += kWarp)
      if (e != first) gradient.add(s[e], f2[e]);
    gradient.mean = warp_reduce(gradient.mean, Sum{});
    for (int64_t e = lane; e < E; e += kWarp) ds[e] += e == first ? T(0) : gradient.of(f2[e]);
  }

  __device__ void operator()(int64_t t, int lane) const {
    T* row = dl + t * E;
    if (mask && mask[t] == 0) {
      for (int64_t e = lane; e < E; e += kWarp) row[e] = 0;
      return;
    }
    const int64_t b = t / N;
    const T *s = probs + t * E, *l = logits + t * E, *f = density + b * E;
    through_probabilities(t, row, lane);
    const TokenCounts counts = unmasked.all();
    const bool in_losses = training && is_whole(mask, t);
    const double sequences = static_cast<double>(importance ? B : counts.sequences);
    const double tokens = static_cast<double>(importance ? N : unmasked.in(b));
    const T balance = static_cast<T>(losses.balance() * static_cast<double>(E) / sequences / tokens);
    for (int64_t e = lane; in_losses && e < E; e += kWarp) row[e] += balance * f[e];
    if (training && second_density) through_second_place(t, balance / 2, row, lane);
    T mean = 0;
    for (int64_t e = lane; e < E; e += kWarp) mean += s[e] * row[e];
    mean = warp_reduce(mean, Sum{});
    for (int64_t e = lane; e < E; e += kWarp) row[e] = s[e] * (row[e] - mean);
    if (dweight && sigmoids)
      through_gates(
          t, lane, [&](int32_t e) { return sigmoid(l[e]); },
          [&](int32_t e, T gradient) { row[e] += gradient * sigmoid_grad(l[e]); });
    if (!in_losses) return;
    // The noise is in s, not in l.
    const double upstream = losses.z() * 2 / static_cast<double>(counts.whole);
    const T scale = static_cast<T>(upstream * static_cast<double>(lse[t]));
    for (int64_t e = lane; e < E; e += kWarp) row[e] += scale * (noise_gates ? exp_of(l[e] - lse[t]) : s[e]);
  }
};

template <class T>
static LogitsGradient<T> gradient_of(const Context& ctx, const RouteBackwardArgs& args) {
  LogitsGradient<T> g{};
  const auto values = [](const void* p) { return static_cast<const T*>(p); };
  g.dweight = values(args.dweight), g.losses = LossGradients<T>::of(args);
  g.mask = args.mask, g.expert_index = args.expert_index, g.kept = args.kept;
  g.gate = values(args.gate), g.probs = values(args.probs), g.logits = values(args.logits), g.lse = values(args.lse);
  g.density = values(args.density), g.second_density = values(args.second_density);
  g.B = args.B, g.N = args.N, g.E = args.E, g.K = args.K;
  g.no_scores = {args.gate_normalization, static_cast<T>(args.eps)};
  g.importance = args.importance, g.noise_gates = args.noise_gates, g.training = args.training;
  g.differentiable_topk = args.differentiable_topk;
  g.sigmoids = is_sigmoid(args.score_function);
  g.error_flag = stream_of(ctx).error_flag();
  return g;
}

template <class T>
static void route_backward_as(const Context& ctx, const RouteBackwardArgs& args) {
  const int64_t E = args.E, tokens = args.B * args.N;
  LogitsGradient<T> gradient = gradient_of<T>(ctx, args);
  Scratch<T> dl(ctx, tokens * E);
  const CountedTokens counted(ctx, args.mask, args.B, args.N);
  gradient.dl = dl.get(), gradient.unmasked = counted.get();
  by_warp(ctx, tokens, gradient);
  input_gradients(ctx, args, dl.get());
}

void route_backward(const Context& ctx, const RouteBackwardArgs& args) {
  check_assignment_count(args.B * args.N, args.K);
  dispatch_float(args.dtype, [&](auto zero) { route_backward_as<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
