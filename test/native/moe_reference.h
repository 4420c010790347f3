#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/activation.h"
#include "core/op_args.h"
#include "core/philox.h"

// A mixture-of-experts layer in plain loops and double precision, token by token and expert by expert.
namespace moe_reference {

using namespace st_moe;
using Values = std::vector<double>;
using Indices = std::vector<int32_t>;

constexpr double kLimit = 1.5, kAlpha = 1.7;  // of swiglu_clamped: both sides of the clamps occur

enum Flags : uint32_t {
  kMasked = 1,
  kNoisy = 2,
  kSoft = 4,  // differentiable top-k
  kAssigned = 8,
  kNoStraightThrough = 16,
  kEvaluation = 32,
  kCollapse = 64,  // every token prefers expert 1
  kDrawn = 128,    // random numbers from the generator instead of given ones
  kUnnormalized = 256,
  kKeptNormalized = 512,
  kSecondAll = 1024,
  kSecondNone = 2048,
  kSecondThreshold = 4096,
  kPrioritized = 1 << 13,
  kNtlb = 1 << 14,
  kImportance = 1 << 15,  // with kMasked: tokens of importance between 0 and 1, too
  kSecondLoss = 1 << 16,
  kSamples = 1 << 17,
  kSecondPlace = 1 << 18,
  kSecondPlaceSampled = 1 << 19,
  kDropout = 1 << 20,
};

struct Shape {
  const char* name;
  int64_t B, N, D, E, K, C, H;
  std::vector<float> threshold;  // [K]
  uint32_t flags = 0;
  double spread = 2;  // of the logits
  Activation activation = Activation::geglu;
  int64_t output = 0;  // O; 0: D
  bool biases = true, multiplicative = true;
  ScoreFunction score = ScoreFunction::softmax;
  bool biased_choice = false;
  int64_t groups = 1, top_groups = 1;
  int64_t out() const { return output ? output : D; }
  int64_t P() const { return w1_rows(activation, H); }
  int64_t tokens() const { return B * N; }
  bool has(Flags flag) const { return flags & flag; }
  GateNormalization normalization() const {
    return has(kUnnormalized)     ? GateNormalization::none
           : has(kKeptNormalized) ? GateNormalization::kept
                                  : GateNormalization::topk;
  }
  SecondPolicy second_policy() const {
    return has(kSecondAll)         ? SecondPolicy::all
           : has(kSecondNone)      ? SecondPolicy::none
           : has(kSecondThreshold) ? SecondPolicy::threshold
                                   : SecondPolicy::random;
  }
};

// Every number is a float, so float32 and float64 layers see the same.
struct Problem {
  Shape shape;
  Values x, w, w1, b1, mu, w2, b2, uniforms, gumbel, second_place, gy, expert_bias;
  Indices mask;
  double cb = 0.7, cz = -0.4, ct = 1.3, balance_coef = 0.5, z_coef = 0.25, noise_mult = 0.75;
  double temperature = 1.5, second_place_prob = 0.5, second_place_temperature = 0.75, dropout = 0.3;
  uint64_t seed = 12345678901234567ull, step = 3, gumbel_step = 2, second_place_step = 4, dropout_step = 5;
  int32_t importance(int64_t t) const { return mask.empty() ? 1 : mask[t]; }
};

inline Problem make_problem(const Shape& s, uint32_t seed) {
  std::mt19937 engine(seed);
  const auto normals = [&](int64_t n, double scale, double shift = 0) {
    std::normal_distribution<double> normal;
    Values v(n);
    for (double& value : v) value = static_cast<float>(shift + scale * normal(engine));
    return v;
  };
  Problem p;
  p.shape = s;
  p.x = normals(s.tokens() * s.D, 1);
  p.w = normals(s.E * s.D, s.spread / std::sqrt(s.D));
  if (s.has(kCollapse))
    for (int64_t t = 0; t < s.tokens(); ++t) p.x[t * s.D] = 4;
  if (s.has(kCollapse))
    for (int64_t e = 0; e < s.E; ++e) p.w[e * s.D] = e == 1 ? 3 : -1;
  p.w1 = normals(s.E * s.P() * s.D, 1.5 / std::sqrt(s.D));
  p.b1 = normals(s.biases ? s.E * s.P() : 0, 0.3);
  p.mu = normals(is_gated(s.activation) && s.multiplicative ? s.E * s.H : 0, 0.3, 1);
  p.w2 = normals(s.E * s.out() * s.H, 1.5 / std::sqrt(s.H));
  p.b2 = normals(s.biases ? s.E * s.out() : 0, 0.3);
  p.gy = normals(s.tokens() * s.out(), 1);
  const auto draws = [&](int64_t n, uint64_t step) {
    Values v(n);
    for (int64_t i = 0; i < n; ++i) v[i] = uniform24(philox_word(p.seed, step, i));
    return v;
  };
  p.step = 1000 + seed;
  p.uniforms = draws(s.K * s.tokens(), p.step);
  p.gumbel = draws(s.tokens() * s.E, p.gumbel_step);
  p.second_place = draws(s.tokens(), p.second_place_step);
  p.expert_bias = normals(s.biased_choice ? s.E : 0, 0.3);
  if (s.has(kMasked))
    for (int64_t t = 0; t < s.tokens(); ++t) {
      const bool masked = t / s.N == 1 || t % 5 == 2;  // sequence 1: all masked
      p.mask.push_back(masked ? 0 : s.has(kImportance) && t % 3 == 1 ? 2 : 1);
    }
  return p;
}

struct Reference {
  Indices index, kept, position;
  Values gate, weight, y, density, second_density;
  double balance = 0, z = 0, total = 0, objective = 0;
  double margin = 1;  // how far the closest routing decision is from turning out otherwise
};

inline Values soft_topk(const Values& s, int64_t K) {
  const double eps = 0.1, log_k = std::log(std::min(K * 9.0 / 8, double(s.size())));
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
inline Indices falling(const Values& values) {
  Indices order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = int32_t(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  return order;
}

// The experts that are not in the top groups.
inline Indices other_groups(const Shape& q, const Values& key, Reference& r) {
  const int64_t size = q.E / q.groups;
  Values score;
  for (int64_t g = 0; g < q.groups; ++g) {
    Values group(key.begin() + g * size, key.begin() + (g + 1) * size);
    std::sort(group.rbegin(), group.rend());
    score.push_back(group[0] + (size > 1 ? group[1] : 0));
  }
  const Indices order = falling(score);
  Indices others;
  for (int64_t i = q.top_groups; i < q.groups; ++i)
    for (int64_t e = order[i] * size; e < (order[i] + 1) * size; ++e) others.push_back(int32_t(e));
  if (q.top_groups < q.groups)
    r.margin = std::min(r.margin, score[order[q.top_groups - 1]] - score[order[q.top_groups]]);
  return others;
}

// l of a token with Gumbel noise.
inline Values disturbed(const Problem& p, int64_t t, Values l, double factor) {
  for (size_t e = 0; e < l.size(); ++e)
    l[e] -= factor * std::log(std::max(-std::log(std::max(p.gumbel[t * l.size() + e], 1e-20)), 1e-20));
  return l;
}

inline int32_t sampled(const Problem& p, int64_t t, const Values& l, double temperature, Reference& r) {
  const Values noisy = disturbed(p, t, l, temperature);
  const Indices order = falling(noisy);
  if (order.size() > 1) r.margin = std::min(r.margin, noisy[order[0]] - noisy[order[1]]);
  return order[0];
}

inline void use_second_place(const Problem& p, int64_t t, Values& l, Reference& r) {
  const double u = p.second_place[t];
  r.margin = std::min(r.margin, std::fabs(u - p.second_place_prob));
  if (u >= p.second_place_prob) return;
  l[falling(l)[0]] -= 1e9;
  if (!p.shape.has(kSecondPlaceSampled)) return;
  const int32_t chosen = sampled(p, t, l, p.second_place_temperature, r);
  for (int32_t e = 0; e < int32_t(l.size()); ++e)
    if (e != chosen) l[e] -= 1e9;
}

inline void reference_token(const Problem& p, int64_t t, Reference& r, Values& s, double& lse) {
  const Shape& q = p.shape;
  Values l(q.E);
  for (int64_t e = 0; e < q.E; ++e)
    for (int64_t d = 0; d < q.D; ++d) l[e] += p.x[t * q.D + d] * p.w[e * q.D + d];
  if (q.has(kSecondPlace)) use_second_place(p, t, l, r);
  lse = log_sum_exp(l);
  if (q.has(kNoisy)) l = disturbed(p, t, l, p.noise_mult);
  const double noisy_lse = log_sum_exp(l);
  s.resize(q.E);
  for (int64_t e = 0; e < q.E; ++e) s[e] = std::exp(l[e] - noisy_lse);
  Values score = q.has(kSoft) ? soft_topk(s, q.K) : s;
  if (q.score == ScoreFunction::sigmoid || q.score == ScoreFunction::sigmoid_after_topk)
    for (int64_t e = 0; e < q.E; ++e) score[e] = 1 / (1 + std::exp(-l[e]));
  const bool after = q.score == ScoreFunction::softmax_after_topk || q.score == ScoreFunction::sigmoid_after_topk;
  Values key = after ? l : q.has(kSoft) ? s : score;
  for (size_t e = 0; e < p.expert_bias.size(); ++e) key[e] += p.expert_bias[e];
  for (int32_t e : other_groups(q, key, r)) key[e] = -INFINITY;
  if (q.has(kSamples)) key[sampled(p, t, l, p.temperature, r)] = 1e30;
  Indices order = falling(key);
  for (int64_t k = 0; k < std::min(q.K, q.E - 1); ++k)
    r.margin = std::min(r.margin, (key[order[k]] - key[order[k + 1]]) / (after ? 1 : std::fabs(key[order[k]])));
  const bool partial = p.importance(t) == 2;
  if (partial && q.K > 1) std::swap(order[0], order[1]);
  if (partial)
    for (int64_t k = 0; k < q.K; ++k)
      if (k != 1) score[order[k]] = 0;
  double delta = 0;
  for (int64_t k = 0; k < q.K; ++k) delta += score[order[k]];
  for (int64_t k = 0; k < q.K; ++k) {
    const int64_t i = t * q.K + k;
    const bool counted = p.importance(t) && (!partial || (k == 1 && !q.has(kNtlb)));
    r.index[i] = order[k];
    r.gate[i] = p.importance(t) ? score[order[k]] / std::max(delta, 1e-9) : 0;
    r.weight[i] = q.has(kUnnormalized) ? score[order[k]] : r.gate[i];
    const double threshold = q.threshold[k], u = p.uniforms[k * q.tokens() + t];
    double reserve = 1;  // above 0: used
    if (k > 0) {
      if (q.has(kSecondNone)) reserve = -1;
      if (q.has(kSecondThreshold)) reserve = r.gate[i] - threshold;
      if (q.second_policy() == SecondPolicy::random) reserve = r.gate[i] / std::max(threshold, 1e-9) - u;
    }
    r.kept[i] = counted && reserve > 0;
    if (counted) r.margin = std::min(r.margin, std::fabs(reserve));
  }
}

// The tokens of a sequence in the order of the slots, counted from its first.
inline Indices slot_order(const Shape& q, int64_t b, Reference& r) {
  Values first(q.N);
  if (q.has(kPrioritized))
    for (int64_t n = 0; n < q.N; ++n) first[n] = r.weight[(b * q.N + n) * q.K];
  const Indices order = falling(first);
  for (int64_t n = 0; n + 1 < q.N; ++n) {
    const double gap = first[order[n]] - first[order[n + 1]];
    if (gap > 0) r.margin = std::min(r.margin, gap);
  }
  return order;
}

inline void reference_slots(const Problem& p, Reference& r) {
  const Shape& q = p.shape;
  for (int64_t b = 0; b < q.B; ++b) {
    Indices used(q.E), has_slot(q.N);
    const Indices order = slot_order(q, b, r);
    for (int64_t k = 0; k < q.K; ++k)
      for (int32_t n : order) {
        const int64_t t = b * q.N + n, i = t * q.K + k;
        const bool routed = r.kept[i];
        r.kept[i] = routed && used[r.index[i]] < q.C && !(q.has(kNtlb) && has_slot[n]);
        has_slot[n] |= r.kept[i];
        double& density = r.density[b * q.E + r.index[i]];
        if (q.has(kNtlb)) density += double(routed) / q.K;
        if (!q.has(kNtlb) && k == 0) density += q.has(kAssigned) ? routed : r.kept[i];
        if (k == 1 && p.importance(t)) r.second_density[b * q.E + r.index[i]] += 1;
        r.position[i] = r.kept[i] ? used[r.index[i]]++ : -1;
        if (!r.kept[i]) r.weight[i] = 0;
      }
  }
  for (int64_t t = 0; q.has(kKeptNormalized) && t < q.tokens(); ++t) {
    double total = 0;
    for (int64_t k = 0; k < q.K; ++k) total += r.weight[t * q.K + k];
    for (int64_t k = 0; k < q.K; ++k) r.weight[t * q.K + k] /= std::max(total, 1e-9);
  }
}

inline double reference_activation(Activation activation, double z) {
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
      const double gate = std::min(z, kLimit);
      return gate / (1 + std::exp(-kAlpha * gate));
    }
  }
  return NAN;
}

// What a gated activation multiplies.
inline double reference_value(Activation activation, double v) {
  return activation == Activation::swiglu_clamped ? std::clamp(v, -kLimit, kLimit) + 1 : v;
}

// y += weight · expert(factor · x) of an assignment
inline void reference_expert(const Problem& p, int64_t assignment, int64_t e, double factor, double weight, Values& y) {
  const Shape& q = p.shape;
  const int64_t P = q.P(), t = assignment / q.K;
  Values a(P), h(q.H);
  for (int64_t j = 0; j < P; ++j) {
    double total = 0;
    for (int64_t d = 0; d < q.D; ++d) total += p.x[t * q.D + d] * p.w1[(e * P + j) * q.D + d];
    a[j] = factor * total + (p.b1.empty() ? 0 : p.b1[e * P + j]);
  }
  for (int64_t j = 0; j < q.H; ++j) {
    const bool gated = is_gated(q.activation);
    h[j] = reference_activation(q.activation, a[gated ? q.H + j : j]);
    if (gated) h[j] *= reference_value(q.activation, a[j]) * (p.mu.empty() ? 1 : p.mu[e * q.H + j]);
    if (q.has(kDropout)) {
      const double u = uniform24(philox_word(p.seed, p.dropout_step, assignment * q.H + j));
      h[j] = u < p.dropout ? 0 : h[j] / (1 - p.dropout);
    }
  }
  const int64_t O = q.out();
  for (int64_t d = 0; d < O; ++d) {
    double total = p.b2.empty() ? 0 : p.b2[e * O + d];
    for (int64_t j = 0; j < q.H; ++j) total += h[j] * p.w2[(e * O + d) * q.H + j];
    y[t * O + d] += weight * total;
  }
}

// `frozen`: the weights that the straight-through factor 1 + w − stop_gradient(w) subtracts; null: the factor is 1.
inline Reference reference(const Problem& p, const Values* frozen = nullptr) {
  const Shape& q = p.shape;
  Reference r;
  r.index = r.kept = r.position = Indices(q.tokens() * q.K);
  r.gate = r.weight = Values(q.tokens() * q.K);
  r.y = Values(q.tokens() * q.out());
  r.density = r.second_density = Values(q.B * q.E);
  Values mean(q.B * q.E), second_mean(q.B * q.E), counted(q.B), s;
  double lse, tokens = 0, sequences = 0;
  for (int64_t t = 0; t < q.tokens(); ++t) {
    const int64_t b = t / q.N;
    reference_token(p, t, r, s, lse);
    if (!p.importance(t)) continue;
    const int32_t first = p.importance(t) == 2 ? -1 : r.index[t * q.K];
    double others = 1e-9;
    for (int64_t e = 0; e < q.E; ++e) others += e == first ? 0 : s[e];
    for (int64_t e = 0; e < q.E; ++e) second_mean[b * q.E + e] += e == first ? 0 : s[e] / others;
    ++counted[b];
    if (p.importance(t) == 2) continue;
    ++tokens;
    r.z += lse * lse;
    for (int64_t e = 0; e < q.E; ++e) mean[b * q.E + e] += s[e];
  }
  reference_slots(p, r);
  for (int64_t b = 0; b < q.B; ++b) {
    const double n = q.has(kImportance) ? q.N : counted[b];
    sequences += n > 0;
    for (int64_t e = b * q.E; e < (b + 1) * q.E && n > 0; ++e) {
      r.balance += (r.density[e] /= n) * mean[e] / n;
      r.second_density[e] /= n;
      if (q.has(kSecondLoss)) r.balance += 0.5 * r.second_density[e] * second_mean[e] / n;
    }
  }
  r.balance *= q.E / std::max(1.0, sequences);
  r.z /= std::max(1.0, tokens);
  if (q.has(kEvaluation)) r.balance = r.z = 0;
  r.total = p.balance_coef * r.balance + p.z_coef * r.z;
  for (int64_t i = 0; i < q.tokens() * q.K; ++i)
    if (r.kept[i]) reference_expert(p, i, r.index[i], frozen ? 1 + r.weight[i] - (*frozen)[i] : 1, r.weight[i], r.y);
  r.objective = p.cb * r.balance + p.cz * r.z + p.ct * r.total;
  for (size_t i = 0; i < r.y.size(); ++i) r.objective += r.y[i] * p.gy[i];
  return r;
}

}  // namespace moe_reference
