#include "core/ops/moe.h"
#include "cpu/logsumexp.h"
#include "cpu/router.h"
#include "cpu/selection.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
struct ExpertChoice {
  const ExpertChoiceArgs& args;
  const Unmasked& unmasked;
  const T* logits;
  T *gate, *weight, *lse;

  ExpertChoice(const ExpertChoiceArgs& a, const Unmasked& tokens)
      : args(a),
        unmasked(tokens),
        logits(static_cast<const T*>(a.logits)),
        gate(static_cast<T*>(a.gate)),
        weight(static_cast<T*>(a.weight)),
        lse(static_cast<T*>(a.lse)) {}

  void read_token(int64_t t) const {
    const int64_t E = args.E;
    lse[t] = static_cast<T>(logsumexp(logits + t * E, E));
    if (args.over_experts) softmax_row(logits + t * E, gate + t * E, E);
  }

  // The scores of one expert in one sequence, and the tokens that it takes.
  void choose(int64_t b, int64_t e) const {
    const int64_t E = args.E, n = unmasked.in_sequence(b), C = min_of(args.C, n);
    const int32_t* token = unmasked.token.get() + unmasked.offset[b];
    Scratch<T> s(n), value(C);
    Scratch<int32_t> index(C);
    for (int64_t j = 0; j < n; ++j) s[j] = (args.over_experts ? gate : logits)[token[j] * E + e];
    if (!args.over_experts && n > 0) softmax_row(s.get(), s.get(), n);
    for (int64_t t = b * args.N; t < (b + 1) * args.N; ++t) {
      const int64_t i = t * E + e;
      args.expert_index[i] = static_cast<int32_t>(e);
      args.kept[i] = 0;
      args.position[i] = -1;
      gate[i] = weight[i] = 0;
    }
    for (int64_t j = 0; j < n; ++j) gate[token[j] * E + e] = s[j];
    if (C == 0) return;
    select_row(s.get(), n, C, value.get(), index.get());
    for (int64_t c = 0; c < C; ++c) {
      const int64_t i = token[index[c]] * E + e;
      args.kept[i] = 1;
      args.position[i] = static_cast<int32_t>(c);
    }
  }

  struct Losses {
    double balance = 0, z = 0;
  };

  // The weights of a sequence, and its part of the losses.
  Losses finish(int64_t b) const {
    Losses losses;
    const int64_t E = args.E;
    for (int64_t j = unmasked.offset[b]; j < unmasked.offset[b + 1]; ++j) {
      const int64_t t = unmasked.token[j];
      int64_t taken = 0;
      double total = 0;
      for (int64_t i = t * E; i < (t + 1) * E; ++i) {
        taken += args.kept[i];
        total += static_cast<double>(gate[i]);
      }
      const T divisor = static_cast<T>(args.over_experts ? 1 : taken);
      for (int64_t i = t * E; i < (t + 1) * E; ++i)
        if (args.kept[i]) weight[i] = gate[i] / divisor;
      const double mean = total / static_cast<double>(E);
      losses.balance += mean * mean;
      losses.z += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
    }
    losses.balance *= args.over_experts ? 0 : static_cast<double>(unmasked.in_sequence(b));
    return losses;
  }
};

void expert_choice(const Context& ctx, const ExpertChoiceArgs& args) {
  const int64_t B = args.B, E = args.E;
  check_assignment_count(B * args.N, E);
  const Unmasked unmasked(args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ExpertChoice<T> router(args, unmasked);
    router_logits<T>(ctx, args);
    parallel_blocks(ctx, B * args.N, 64, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) router.read_token(t);
    });
    parallel_for(ctx, B * E, [&](int64_t i) { router.choose(i / E, i % E); });
    Scratch<typename ExpertChoice<T>::Losses> losses(B);
    parallel_for(ctx, B, [&](int64_t b) { losses[b] = router.finish(b); });
    double balance = 0, z = 0;
    for (int64_t b = 0; b < B; ++b) {
      balance += losses[b].balance;
      z += losses[b].z;
    }
    const double tokens = static_cast<double>(max_of<int64_t>(1, unmasked.count));
    write_losses<T>(args, balance / static_cast<double>(max_of<int64_t>(1, B)), z / tokens);
  });
}

// The gradient dl [unmasked tokens, E] of the logits.
template <class T>
struct ExpertChoiceGradient {
  const ExpertChoiceBackwardArgs& args;
  const Unmasked& unmasked;
  T* dl;
  double balance_scale = 0, z_scale = 0;  // upstream gradients times 2 / (B · E), and 2 / tokens

  ExpertChoiceGradient(const ExpertChoiceBackwardArgs& a, const Unmasked& tokens, T* to)
      : args(a), unmasked(tokens), dl(to) {
    if (!args.training || unmasked.count == 0) return;
    const auto losses = LossGradients<T>::of(args);
    if (!args.over_experts) balance_scale = losses.balance * 2 / static_cast<double>(args.B * args.E);
    z_scale = losses.z * 2 / static_cast<double>(unmasked.count);
  }

  // ds [E] of a token: through its weights, and through the load-balancing loss.
  void score_row(int64_t t, double balance, T* ds) const {
    const int64_t E = args.E;
    const T *s = static_cast<const T*>(args.gate) + t * E, *dweight = static_cast<const T*>(args.dweight);
    const int32_t* kept = args.kept + t * E;
    int64_t taken = 0;
    double mean = 0;
    for (int64_t e = 0; e < E; ++e) {
      taken += kept[e] != 0;
      mean += static_cast<double>(s[e]) / static_cast<double>(E);
    }
    const T divisor = static_cast<T>(args.over_experts ? 1 : taken);
    for (int64_t e = 0; e < E; ++e) {
      ds[e] = static_cast<T>(balance * mean);
      if (dweight && kept[e]) ds[e] += dweight[t * E + e] / divisor;
    }
  }

  void sequence(int64_t b) const {
    const int64_t E = args.E, begin = unmasked.offset[b], end = unmasked.offset[b + 1];
    const T *gate = static_cast<const T*>(args.gate), *logits = static_cast<const T*>(args.logits);
    Scratch<double> mean(E);  // <s, ds> over the tokens of each expert
    for (int64_t e = 0; e < E; ++e) mean[e] = 0;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t t = unmasked.token[j];
      T* ds = dl + j * E;
      score_row(t, balance_scale * static_cast<double>(end - begin), ds);
      for (int64_t e = 0; e < E; ++e) mean[e] += static_cast<double>(gate[t * E + e]) * static_cast<double>(ds[e]);
    }
    for (int64_t j = begin; j < end; ++j) {
      const int64_t t = unmasked.token[j];
      const T lse = static_cast<const T*>(args.lse)[t], scale = static_cast<T>(z_scale * static_cast<double>(lse));
      T* row = dl + j * E;
      const T of_token = args.over_experts ? dot(gate + t * E, row, E) : T(0);
      for (int64_t e = 0; e < E; ++e) {
        row[e] = gate[t * E + e] * (row[e] - (args.over_experts ? of_token : static_cast<T>(mean[e])));
        if (args.training) row[e] += scale * exp_of(logits[t * E + e] - lse);
      }
    }
  }
};

void expert_choice_backward(const Context& ctx, const ExpertChoiceBackwardArgs& args) {
  check_assignment_count(args.B * args.N, args.E);
  const Unmasked unmasked(args);
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    Scratch<T> dl(unmasked.count * args.E);
    const ExpertChoiceGradient<T> gradient(args, unmasked, dl.get());
    parallel_for(ctx, args.B, [&](int64_t b) { gradient.sequence(b); });
    input_gradients(ctx, args, unmasked, dl.get());
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
