#pragma once
#include "core/formulas.h"
#include "core/ops/moe.h"

namespace st_moe {

// Scores are sigmoids of single logits, else a softmax.
ST_MOE_HOST_DEVICE static inline bool is_sigmoid(ScoreFunction f) {
  return f == ScoreFunction::sigmoid || f == ScoreFunction::sigmoid_after_topk;
}

// Of a group of `size` experts: the sum of its two best keys. A token chooses experts of its best groups only
// (DeepSeek-V3, arXiv 2412.19437, §2.1.2).
template <class T>
ST_MOE_HOST_DEVICE static inline T group_score(const T* key, int64_t size) {
  if (size == 1) return key[0];
  const bool second_is_best = key[1] > key[0];
  T best = key[second_is_best], second = key[!second_is_best];
  for (int64_t e = 2; e < size; ++e) {
    if (key[e] > best)
      second = best, best = key[e];
    else if (key[e] > second)
      second = key[e];
  }
  return best + second;
}

constexpr float kLowered = 1e9f;  // taken from logits of experts that must not be chosen

// The entries of a mask: 0 is padding, 1 a token, 2 a token of an importance between 0 and 1.
template <class V>
ST_MOE_HOST_DEVICE static inline int32_t mask_entry(V value, bool importance) {
  return value == 0 ? 0 : importance && value != 1 ? 2 : 1;
}
template <class V>
ST_MOE_HOST_DEVICE static inline bool is_mask(V value, bool importance) {
  return importance ? value >= 0 && value <= 1 : value == value;
}
ST_MOE_HOST_DEVICE static inline bool is_padding(const int32_t* mask, int64_t t) {
  return mask && mask[t] == 0;
}
// Of importance 1: it counts in the losses.
ST_MOE_HOST_DEVICE static inline bool is_whole(const int32_t* mask, int64_t t) {
  return !mask || mask[t] == 1;
}
// Of an importance between 0 and 1: it has its best expert alone, as assignment 1.
ST_MOE_HOST_DEVICE static inline bool is_partial(const int32_t* mask, int64_t t) {
  return mask && mask[t] == 2;
}

// The numbers of a router in the type of its logits, and the formulas that use them, for both backends.
template <class T>
struct RouterNumbers {
  T noise_mult, router_temperature, second_place_prob, second_place_temperature, eps;
  GateNormalization normalization;
  SecondPolicy second_policy;
  ScoreFunction score_function;

  static RouterNumbers of(const RouteArgs& args) {
    const auto number = [](double value) { return static_cast<T>(value); };
    return {number(args.noise_mult),
            number(args.router_temperature),
            number(args.second_place_prob),
            number(args.second_place_temperature),
            number(args.eps),
            args.gate_normalization,
            args.second_policy,
            args.score_function};
  }
  ST_MOE_HOST_DEVICE T noisy(T logit, T u) const { return logit + noise_mult * gumbel(u); }
  // What experts are chosen by, of one with this logit and this probability, and its score.
  ST_MOE_HOST_DEVICE T key(T logit, T probability) const {
    const bool after =
        score_function == ScoreFunction::softmax_after_topk || score_function == ScoreFunction::sigmoid_after_topk;
    return after ? logit : score(logit, probability);
  }
  ST_MOE_HOST_DEVICE T score(T logit, T probability) const {
    return is_sigmoid(score_function) ? sigmoid(logit) : probability;
  }
  // Of a chosen expert with this score; `total` is the sum over the token's experts.
  ST_MOE_HOST_DEVICE T gate(T score, T total) const { return score / (total < eps ? eps : total); }
  // What slots go by: the largest score of the token's K experts, before it is divided. l, s [E]
  ST_MOE_HOST_DEVICE T priority(const T* l, const T* s, const int32_t* index, int64_t K) const {
    T largest = score(l[index[0]], s[index[0]]);
    for (int64_t k = 1; k < K; ++k)
      if (const T other = score(l[index[k]], s[index[k]]); other > largest) largest = other;
    return largest;
  }
  // Before it is known which experts are kept. For GateNormalization::kept, gate() divides it by the sum over those.
  ST_MOE_HOST_DEVICE T weight(T score, T gate) const { return normalization == GateNormalization::topk ? gate : score; }
  // Of the second and later experts.
  ST_MOE_HOST_DEVICE bool is_routed(T u, T gate, float threshold) const {
    switch (second_policy) {
      case SecondPolicy::random: return routed(u, gate, static_cast<T>(threshold), eps);
      case SecondPolicy::all: return true;
      case SecondPolicy::none: return false;
      case SecondPolicy::threshold: return gate > static_cast<T>(threshold);
    }
    return false;
  }
};

constexpr double kOthersFloor = 1e-9;  // added to the sum of s over the experts that are not the first choice

// The gradient of the probabilities s of a token through the loss of second places, 0.5 · E² · mean(f2 · P2), where P2
// is the mean of s without the first choice, divided by its sum. `sum` comes first, over the other experts, then
// `mean`.
template <class T>
struct SecondPlaceGradient {
  T scale;  // of f2
  T sum = static_cast<T>(kOthersFloor);
  T mean = 0;

  ST_MOE_HOST_DEVICE void add(T s, T f2) { mean += scale * f2 * s / sum; }
  ST_MOE_HOST_DEVICE T of(T f2) const { return (scale * f2 - mean) / sum; }
};

// The gradient of the scores of a token's experts through its weights. `total` comes first, over all K experts, then
// `mean`, then the gradients.
template <class T>
struct ScoreGradient {
  GateNormalization normalization;
  T eps;
  T total = 0;  // what the scores are divided by
  T mean = 0;   // Σ dweight · weight

  ST_MOE_HOST_DEVICE void add_score(T score, bool kept) {
    if (counts(kept)) total += score;
  }
  // With one kept expert the gradient is exactly 0, since its weight is exactly 1.
  ST_MOE_HOST_DEVICE void add_weight(T score, T gate, bool kept, T dweight) {
    if (kept) mean += dweight * (normalization == GateNormalization::topk ? gate : score / (total < eps ? eps : total));
  }
  ST_MOE_HOST_DEVICE T of(bool kept, T dweight) const {
    const T dg = kept ? dweight : T(0);
    if (normalization == GateNormalization::none) return dg;
    if (total < eps) return dg / eps;
    return counts(kept) ? (dg - mean) / total : T(0);
  }

 private:
  ST_MOE_HOST_DEVICE bool counts(bool kept) const { return kept || normalization != GateNormalization::kept; }
};

}  // namespace st_moe
