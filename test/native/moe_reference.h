#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "cases/case.h"
#include "core/activation.h"
#include "core/philox.h"

// The router and the experts of a layer in plain loops and double precision, token by token and expert by expert: the
// values that the cases of route and expert_ffn expect.
namespace st_moe::test {

using Values = std::vector<double>;
using Order = std::vector<int64_t>;

// Maximum-entropy top-k of s: 20 rounds of the differentiable top-k.
inline Values soft_topk(const Values& s, int64_t K) {
  const double eps = 0.1, log_k = std::log(std::min(static_cast<double>(K) * 9 / 8, static_cast<double>(s.size())));
  Values b(s), c(s);
  for (double& value : b) value = -value;
  double a = 0;
  for (int iteration = 0; iteration < 20; ++iteration) {
    double total = 0;
    for (size_t e = 0; e < s.size(); ++e) total += std::exp((s[e] + b[e]) / eps);
    a = eps * (log_k - std::log(total));
    for (size_t e = 0; e < s.size(); ++e) b[e] = -std::max(s[e] + a, 0.0);
  }
  for (size_t e = 0; e < s.size(); ++e) c[e] = std::exp((s[e] + a + b[e]) / eps);
  return c;
}

inline double log_sum_exp(const Values& l) {
  const double largest = *std::max_element(l.begin(), l.end());
  double total = 0;
  for (double value : l) total += std::exp(value - largest);
  return largest + std::log(total);
}

// Indices by falling value.
inline Order falling(const Values& values) {
  Order order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return values[i] > values[j]; });
  return order;
}

class RouteReference {
 public:
  RouteReference(const RouteArgs& args, Problem& problem) : a(args), p(problem) {}

  void run() {
    mean_.assign(a.B * a.E, 0), second_mean_ = mean_, counted_.assign(a.B, 0);
    for (int64_t t = 0; t < a.B * a.N; ++t) route_token(t);
    std::fill(density.begin(), density.end(), 0), std::fill(second_density.begin(), second_density.end(), 0);
    std::fill(p["assignment"].begin(), p["assignment"].end(), -1);
    for (int64_t b = 0; b < a.B; ++b) take_slots(b);
    for (int64_t t = 0; a.gate_normalization == GateNormalization::kept && t < a.B * a.N; ++t) {
      double total = 0;
      for (int64_t k = 0; k < a.K; ++k) total += weight[t * a.K + k];
      for (int64_t k = 0; k < a.K; ++k) weight[t * a.K + k] /= std::max(total, a.eps);
    }
    add_losses();
  }

  // How far the closest decision is from turning out otherwise.
  double margin() const { return margin_; }

 private:
  double importance(int64_t t) const { return p.has("mask") ? mask[t] : 1; }
  void decide(double reserve) { margin_ = std::min(margin_, std::fabs(reserve)); }
  // Number i of a tensor, or of a sample if the caller gave none.
  double uniform(const char* name, uint64_t step, int64_t i) const {
    return p.has(name) ? p[name][i]
                       : static_cast<double>(uniform24(philox_word(a.seed, step, static_cast<uint64_t>(i))));
  }

  // l of a token with Gumbel noise.
  Values disturbed(int64_t t, Values l, double factor) const {
    for (int64_t e = 0; e < a.E; ++e) {
      const double u = uniform("gumbel_uniforms", a.gumbel_step, t * a.E + e);
      l[e] -= factor * std::log(std::max(-std::log(std::max(u, 1e-20)), 1e-20));
    }
    return l;
  }
  int64_t sampled(int64_t t, const Values& l, double temperature) {
    const Values noisy = disturbed(t, l, temperature);
    const Order order = falling(noisy);
    if (a.E > 1) decide(noisy[order[0]] - noisy[order[1]]);
    return order[0];
  }

  void use_second_place(int64_t t, Values& l) {
    const double u = uniform("second_place_uniforms", a.second_place_step, t);
    decide(u - a.second_place_prob);
    if (u >= a.second_place_prob) return;
    l[falling(l)[0]] -= 1e9;
    if (a.second_place_temperature < 0) return;
    const int64_t chosen = sampled(t, l, a.second_place_temperature);
    for (int64_t e = 0; e < a.E; ++e)
      if (e != chosen) l[e] -= 1e9;
  }

  // −∞ for the keys of experts that are not in the top groups.
  void keep_top_groups(Values& key) {
    const int64_t size = a.E / a.routing_groups;
    Values score;
    for (int64_t g = 0; g < a.routing_groups; ++g) {
      Values group(key.begin() + g * size, key.begin() + (g + 1) * size);
      std::sort(group.rbegin(), group.rend());
      score.push_back(group[0] + (size > 1 ? group[1] : 0));
    }
    const Order order = falling(score);
    for (int64_t i = a.top_groups; i < a.routing_groups; ++i)
      std::fill_n(key.begin() + order[i] * size, size, -INFINITY);
    if (a.top_groups < a.routing_groups) decide(score[order[a.top_groups - 1]] - score[order[a.top_groups]]);
  }

  // What the experts of a token are chosen by, from its logits and its scores.
  Values keys(int64_t t, const Values& l, const Values& score) {
    const bool after = of_logits();
    Values key = after ? l : score;
    for (int64_t e = 0; p.has("expert_bias") && e < a.E; ++e) key[e] += p["expert_bias"][e];
    const int64_t forced = a.sample_experts ? sampled(t, l, a.router_temperature) : -1;
    if (a.routing_groups > 1) keep_top_groups(key);
    if (forced >= 0) key[forced] = 1e30;
    return key;
  }
  bool of_logits() const {
    return a.score_function == ScoreFunction::softmax_after_topk ||
           a.score_function == ScoreFunction::sigmoid_after_topk;
  }

  bool is_sigmoid() const {
    return a.score_function == ScoreFunction::sigmoid || a.score_function == ScoreFunction::sigmoid_after_topk;
  }

  void route_token(int64_t t) {
    Values l(a.E), s(a.E);
    for (int64_t e = 0; e < a.E; ++e)
      for (int64_t d = 0; d < a.D; ++d) l[e] += x[t * a.D + d] * w[e * a.D + d];
    if (a.second_place_prob > 0) use_second_place(t, l);
    const Values noisy = a.noise_gates ? disturbed(t, l, a.noise_mult) : l;
    const double lse = log_sum_exp(l), noisy_lse = log_sum_exp(noisy);
    for (int64_t e = 0; e < a.E; ++e) s[e] = std::exp(noisy[e] - noisy_lse);
    std::copy(l.begin(), l.end(), p["logits"].begin() + t * a.E);
    std::copy(s.begin(), s.end(), p["probs"].begin() + t * a.E);
    p["lse"][t] = lse;
    choose(t, l, s);
    if (importance(t) != 0) count(t, s, lse);
  }

  void choose(int64_t t, const Values& l, const Values& s) {
    Values score = a.differentiable_topk ? soft_topk(s, a.K) : s;
    for (int64_t e = 0; is_sigmoid() && e < a.E; ++e) score[e] = 1 / (1 + std::exp(-l[e]));
    const Values key = a.differentiable_topk ? s : keys(t, l, score);
    Order order = falling(key);
    for (int64_t k = 0; k < std::min(a.K, a.E - 1); ++k)
      decide((key[order[k]] - key[order[k + 1]]) / (of_logits() ? 1 : std::fabs(key[order[k]])));
    const bool partial = importance(t) == 2;
    if (partial && a.K > 1) std::swap(order[0], order[1]);
    double delta = 0;
    for (int64_t k = 0; k < a.K; ++k) {
      if (partial && k != 1) score[order[k]] = 0;
      delta += score[order[k]];
    }
    for (int64_t k = 0; k < a.K; ++k) {
      const int64_t i = t * a.K + k;
      index[i] = static_cast<double>(order[k]);
      gate[i] = importance(t) != 0 ? score[order[k]] / std::max(delta, a.eps) : 0;
      weight[i] = a.gate_normalization == GateNormalization::none ? score[order[k]] : gate[i];
      const bool counted = importance(t) != 0 && (!partial || (k == 1 && !a.ntlb));
      const double spare = k == 0 ? 1 : reserve(t, k);
      kept[i] = counted && spare > 0;
      if (counted) decide(spare);
    }
  }

  // Above 0: a second or later expert is used.
  double reserve(int64_t t, int64_t k) const {
    const double threshold = p["threshold"][k], g = gate[t * a.K + k];
    switch (a.second_policy) {
      case SecondPolicy::all: return 1;
      case SecondPolicy::none: return -1;
      case SecondPolicy::threshold: return g - threshold;
      case SecondPolicy::random: break;
    }
    return g / std::max(threshold, a.eps) - uniform("uniforms", a.step, k * a.B * a.N + t);
  }

  void count(int64_t t, const Values& s, double lse) {
    const int64_t b = t / a.N, first = importance(t) == 2 ? -1 : static_cast<int64_t>(index[t * a.K]);
    double others = 1e-9;
    for (int64_t e = 0; e < a.E; ++e) others += e == first ? 0 : s[e];
    for (int64_t e = 0; e < a.E; ++e) second_mean_[b * a.E + e] += e == first ? 0 : s[e] / others;
    ++counted_[b];
    if (importance(t) == 2) return;
    ++whole_, z_ += lse * lse;
    for (int64_t e = 0; e < a.E; ++e) mean_[b * a.E + e] += s[e];
  }

  // Of the experts of a token: of their sigmoids, or of their probabilities over all experts.
  double largest_score(int64_t t) const {
    double largest = 0;
    for (int64_t i = t * a.K; i < (t + 1) * a.K; ++i) {
      const size_t at = static_cast<size_t>(t * a.E) + static_cast<size_t>(index[i]);
      largest = std::max(largest, is_sigmoid() ? 1 / (1 + std::exp(-p["logits"][at])) : p["probs"][at]);
    }
    return largest;
  }

  // The tokens of a sequence in the order of the slots.
  Order slot_order(int64_t b) {
    Values first(a.N);
    for (int64_t n = 0; a.batch_prioritized && n < a.N; ++n) first[n] = largest_score(b * a.N + n);
    const Order order = falling(first);
    for (int64_t n = 0; n + 1 < a.N; ++n)
      if (const double gap = first[order[n]] - first[order[n + 1]]; gap > 0) decide(gap);
    return order;
  }

  void take_slots(int64_t b) {
    Order used(a.E), has_slot(a.N);
    const Order order = slot_order(b);
    for (int64_t k = 0; k < a.K; ++k)
      for (const int64_t n : order) {
        const int64_t t = b * a.N + n, i = t * a.K + k, e = static_cast<int64_t>(index[i]);
        const bool routed = kept[i] != 0, dispatched = routed && used[e] < a.C && !(a.ntlb && has_slot[n]);
        has_slot[n] |= dispatched;
        if (a.ntlb) density[b * a.E + e] += static_cast<double>(routed) / static_cast<double>(a.K);
        if (!a.ntlb && k == 0)
          density[b * a.E + e] += a.balance_density == BalanceDensity::assigned ? routed : dispatched;
        if (k == 1 && importance(t) != 0) second_density[b * a.E + e] += 1;
        kept[i] = dispatched;
        position[i] = dispatched ? static_cast<double>(used[e]++) : -1;
        if (!dispatched) weight[i] = 0;
        const double row = dispatched ? static_cast<double>((e * a.B + b) * a.C) + position[i] : -1;
        if (p.has("row_of")) p["row_of"][i] = row;
        if (p.has("assignment") && dispatched) p["assignment"][static_cast<size_t>(row)] = static_cast<double>(i);
      }
  }

  void add_losses() {
    double balance = 0, sequences = 0;
    for (int64_t b = 0; b < a.B; ++b) {
      const double n = a.importance ? static_cast<double>(a.N) : counted_[b];
      sequences += n > 0;
      for (int64_t e = b * a.E; e < (b + 1) * a.E && n > 0; ++e) {
        balance += (density[e] /= n) * mean_[e] / n;
        second_density[e] /= n;
        if (p.has("second_density")) balance += 0.5 * second_density[e] * second_mean_[e] / n;
      }
    }
    balance *= a.training ? static_cast<double>(a.E) / std::max(1.0, sequences) : 0;
    const double z = a.training ? z_ / std::max(1.0, whole_) : 0;
    p["balance_loss"] = {balance}, p["z_loss"] = {z},
    p["total_loss"] = {a.balance_loss_coef * balance + a.router_z_loss_coef * z};
  }

  const RouteArgs& a;
  Problem& p;
  const Values &x = p["x"], &w = p["w"], &mask = p["mask"];
  Values &index = p["expert_index"], &kept = p["kept"], &position = p["position"], &gate = p["gate"],
         &weight = p["weight"], &density = p["density"], &second_density = p["second_density"];
  Values mean_, second_mean_, counted_;  // sums over tokens: s, s without the first choice, and their number
  double margin_ = 1, z_ = 0, whole_ = 0;
};

inline double reference_activation(Activation activation, double z, double limit, double alpha) {
  const double positive = std::max(z, 0.0);
  switch (activation) {
    case Activation::geglu:
    case Activation::gelu: return z * 0.5 * std::erfc(-z / std::sqrt(2.0));
    case Activation::geglu_tanh:
    case Activation::gelu_tanh:
      return z * 0.5 * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (z + 0.044715 * z * z * z)));
    case Activation::swiglu:
    case Activation::silu: return z / (1 + std::exp(-z));
    case Activation::reglu:
    case Activation::relu: return positive;
    case Activation::relu2: return positive * positive;
    case Activation::swiglu_clamped: {
      const double gate = std::min(z, limit);
      return gate / (1 + std::exp(-alpha * gate));
    }
  }
  return NAN;
}

// What a gated activation multiplies.
inline double reference_value(Activation activation, double v, double limit) {
  return activation == Activation::swiglu_clamped ? std::clamp(v, -limit, limit) + 1 : v;
}

struct ExpertReference {  // the parameters of one expert, or null
  const double *w1, *b1, *mult_bias, *w2, *b2;
};

// out = expert(factor · x) of an assignment. x [D], out [O]
inline void reference_expert(const ExpertFfnArgs& a, const ExpertReference& expert, const double* x, double factor,
                             int64_t assignment, double* out) {
  const int64_t P = w1_rows(a.activation, a.H);
  const bool gated = is_gated(a.activation);
  Values pre(P), h(a.H);
  for (int64_t j = 0; j < P; ++j) {
    double total = 0;
    for (int64_t d = 0; d < a.D; ++d) total += x[d] * expert.w1[j * a.D + d];
    pre[j] = factor * total + (expert.b1 ? expert.b1[j] : 0);
  }
  for (int64_t j = 0; j < a.H; ++j) {
    h[j] = reference_activation(a.activation, pre[gated ? a.H + j : j], a.limit, a.alpha);
    if (gated) h[j] *= reference_value(a.activation, pre[j], a.limit) * (expert.mult_bias ? expert.mult_bias[j] : 1);
    if (a.dropout <= 0) continue;
    const double u = uniform24(philox_word(a.seed, a.step, static_cast<uint64_t>(assignment * a.H + j)));
    h[j] = u < a.dropout ? 0 : h[j] / (1 - a.dropout);
  }
  for (int64_t o = 0; o < a.O; ++o) {
    out[o] = expert.b2 ? expert.b2[o] : 0;
    for (int64_t j = 0; j < a.H; ++j) out[o] += h[j] * expert.w2[o * a.H + j];
  }
}

}  // namespace st_moe::test
