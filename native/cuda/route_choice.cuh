#pragma once
#include "core/formulas.h"
#include "core/philox.h"
#include "core/router.h"
#include "cuda/per_step.cuh"
#include "cuda/plan.cuh"
#include "cuda/router.cuh"
#include "cuda/selection.cuh"
#include "cuda/soft_topk.cuh"

// What route.cu computes with, and how a token chooses its experts.
namespace st_moe::cuda {

template <class T>
struct Router {
  const T *uniforms, *gumbel_uniforms, *second_place_uniforms, *expert_bias;
  const float* threshold;
  const int32_t* mask;
  int32_t *expert_index, *kept, *position;
  int32_t *assignment, *row_of;  // both or none
  T *gate, *weight, *probs, *lse, *density, *second_density, *logits;
  int64_t B, N, E, K, C, routing_groups, top_groups, tile, tiles;  // tiles of `tile` tokens in each sequence
  Sample sample, gumbel_sample, second_place_sample;
  RouterNumbers<T> numbers;
  bool noise_gates, differentiable_topk, sample_experts, ntlb, importance;
  BalanceDensity balance_density;
  // Scratch
  T* keys;           // [B, N, E] what experts are chosen by; null unless there are groups
  int32_t* count;    // [B, tiles, K, E] routed assignments of a tile, later those of the sequence that come before
  int32_t* counted;  // [B, tiles] tokens of importance 1
  double* prob_sum;  // [B, tiles, E] Σ s over them
  double* z_sum;     // [B, tiles] Σ lse² over them
  double* balance;   // [blocks of the scan] Σ f · P
  double* z;         // [B] Σ lse²
  int64_t* whole;    // [B] tokens of importance 1
  T* others;         // [B, N] Σ s without the first choice, + 1e-9; null unless there is second_density
  int32_t* order;    // [B, N] the tokens in the order of the slots; null: by token
  int32_t* taken;    // [B, E] slots that were asked for by choices before k; null unless ntlb

  __device__ bool masked(int64_t t) const { return is_padding(mask, t); }
  __device__ bool partial(int64_t t) const { return is_partial(mask, t); }
  // −1: none.
  __device__ int32_t first_choice(int64_t t) const { return partial(t) ? -1 : expert_index[t * K]; }
  __device__ int64_t token(int64_t i) const { return order ? order[i] : i; }
  __device__ int64_t row(int64_t b, int64_t e, int64_t slot) const { return (e * B + b) * C + slot; }
  // Whether token t asks for a slot of its expert k.
  __device__ bool asks(int64_t t, int64_t k) const {
    for (int64_t i = t * K; ntlb && i < t * K + k; ++i)
      if (position[i] >= 0) return false;
    return kept[t * K + k] != 0;
  }

  // Tokens [begin, end) of tile `work`, counted over all sequences.
  __device__ int64_t begin(int64_t work) const { return work / tiles * N + work % tiles * tile; }
  __device__ int64_t end(int64_t work) const { return min_of(begin(work) + tile, (work / tiles + 1) * N); }

  __device__ T gumbel_uniform(int64_t i) const;
  __device__ int32_t sampled(int64_t t, T temperature, int lane) const;
  __device__ void use_second_place(int64_t t, int lane) const;
  __device__ void probabilities(int64_t t, int lane) const;
  __device__ T key(int64_t t, int64_t e) const;
  __device__ void keep_top_groups(int64_t t, int lane) const;
  __device__ void choose(int64_t t, int lane) const;
  __device__ bool is_routed(int64_t t, int64_t k, T g) const;
  __device__ void count_choices(int64_t work, int64_t first_k, int64_t last_k) const;
  __device__ void add_up(int64_t work) const;
  __device__ int32_t scan_tiles(int64_t b, int64_t e, int64_t first_k, int64_t last_k, int32_t carry, int lane,
                                int32_t* first) const;
  __device__ double second_places(int64_t b, int64_t e, double tokens, int lane) const;
  __device__ void clear_slots(int64_t b, int64_t e, int64_t used, int lane) const;
  __device__ double scan(int64_t b, int64_t e, int lane) const;
  __device__ void find_slots(int64_t work, int64_t k, int lane) const;
};

template <class T>
__device__ T Router<T>::gumbel_uniform(int64_t i) const {
  return gumbel_uniforms ? gumbel_uniforms[i] : static_cast<T>(uniform24(gumbel_sample.word(static_cast<uint64_t>(i))));
}

// The expert of the largest l + temperature · Gumbel noise.
template <class T>
__device__ int32_t Router<T>::sampled(int64_t t, T temperature, int lane) const {
  const auto value = [&](int64_t e) { return logits[t * E + e] + temperature * gumbel(gumbel_uniform(t * E + e)); };
  return warp_first(first_after(before_all<T>(), E, lane, kWarp, value)).index;
}

// Lowers the logits that a token must not choose by, if its number says that it uses its second place.
template <class T>
__device__ void Router<T>::use_second_place(int64_t t, int lane) const {
  const T u = second_place_uniforms ? second_place_uniforms[t]
                                    : static_cast<T>(uniform24(second_place_sample.word(static_cast<uint64_t>(t))));
  if (!(u < numbers.second_place_prob)) return;
  T* l = logits + t * E;
  const int32_t best = warp_first(first_after(before_all<T>(), E, lane, kWarp, [&](int64_t e) { return l[e]; })).index;
  if (best % kWarp == lane) l[best] -= static_cast<T>(kLowered);
  if (numbers.second_place_temperature < 0) return;
  const int32_t chosen = sampled(t, numbers.second_place_temperature, lane);
  for (int64_t e = lane; e < E; e += kWarp)
    if (e != chosen) l[e] -= static_cast<T>(kLowered);
}

template <class T>
__device__ void Router<T>::probabilities(int64_t t, int lane) const {
  if (numbers.second_place_prob > 0) use_second_place(t, lane);
  const T* l = logits + t * E;
  T* s = probs + t * E;
  const T clean = softmax_row(l, noise_gates ? nullptr : s, E, lane);
  if (lane == 0) lse[t] = clean;
  if (!noise_gates) return;
  for (int64_t e = lane; e < E; e += kWarp) s[e] = numbers.noisy(l[e], gumbel_uniform(t * E + e));
  softmax_row(s, s, E, lane);
}

// What expert e is chosen by.
template <class T>
__device__ T Router<T>::key(int64_t t, int64_t e) const {
  const T own = numbers.key(logits[t * E + e], probs[t * E + e]);
  return expert_bias ? own + expert_bias[e] : own;
}

// The keys of a token, −inf outside its top groups. Lane l writes the entries of the groups l, l + 32, … only.
template <class T>
__device__ void Router<T>::keep_top_groups(int64_t t, int lane) const {
  T* row = keys + t * E;
  const int64_t size = E / routing_groups;
  for (int64_t g = lane; g < routing_groups; g += kWarp)
    for (int64_t e = g * size; e < (g + 1) * size; ++e) row[e] = key(t, e);
  const auto score = [&](int64_t g) { return group_score(row + g * size, size); };
  Entry<T> last = before_all<T>();
  for (int64_t i = 0; i < top_groups; ++i) last = warp_first(first_after(last, routing_groups, lane, kWarp, score));
  for (int64_t g = lane; g < routing_groups; g += kWarp) {
    if (!before(last, Entry<T>{score(g), static_cast<int32_t>(g)})) continue;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) row[e] = -static_cast<T>(INFINITY);
  }
}

template <class T>
__device__ bool Router<T>::is_routed(int64_t t, int64_t k, T g) const {
  if (masked(t) || (partial(t) && (k != 1 || ntlb))) return false;
  if (k == 0) return true;
  const int64_t i = k * B * N + t;
  const T u = uniforms ? uniforms[i] : static_cast<T>(uniform24(sample.word(static_cast<uint64_t>(i))));
  return numbers.is_routed(u, g, threshold[k]);
}

// Probabilities, experts and gates of a token, by a warp; `kept` says for now which assignments are routed. Lane l has
// the assignments l, l + 32, … The experts of a NaN row are 0 … K−1.
template <class T>
__device__ void Router<T>::choose(int64_t t, int lane) const {
  probabilities(t, lane);
  const T *l = logits + t * E, *s = probs + t * E;
  T a = 0, total = 0;
  __syncwarp();  // the keys of a group come from entries of other lanes
  if (keys) keep_top_groups(t, lane);
  const int32_t forced = sample_experts ? sampled(t, numbers.router_temperature, lane) : -1;
  if (differentiable_topk) a = SoftTopk<T>(E, K, lane).descend(s, nullptr);
  __syncwarp();  // the gates come from entries of other lanes
  Entry<T> entry = before_all<T>();
  for (int64_t k = 0; k < K; ++k) {
    entry = warp_first(first_after(entry, E, lane, kWarp, [&](int64_t e) {
      if (e == forced) return static_cast<T>(INFINITY);
      if (!differentiable_topk) return keys ? keys[t * E + e] : key(t, e);
      const T c = SoftTopk<T>::score(s[e], a);
      return s[e] * (c + (T(1) - c));
    }));
    const T score =
        differentiable_topk ? SoftTopk<T>::score(s[entry.index], a) : numbers.score(l[entry.index], s[entry.index]);
    // The best of a token that has one expert is assignment 1, and the others are not used.
    const bool one = partial(t) && K > 1, unused = partial(t) && (one ? k != 0 : true);
    const int64_t place = one && k < 2 ? 1 - k : k;
    total += unused ? T(0) : score;
    if (place % kWarp != lane) continue;
    expert_index[t * K + place] = entry.index;
    gate[t * K + place] = unused ? T(0) : score;
  }
  for (int64_t k = lane; k < K; k += kWarp) {
    const T score = gate[t * K + k], g = masked(t) ? T(0) : numbers.gate(score, total);
    gate[t * K + k] = g;
    weight[t * K + k] = numbers.weight(score, g);
    kept[t * K + k] = is_routed(t, k, g);
    if (ntlb) position[t * K + k] = -1;
  }
  if (!others) return;
  __syncwarp();  // the first choice comes from another lane
  T sum = 0;
  for (int64_t e = lane; e < E; e += kWarp) sum += e == first_choice(t) ? T(0) : s[e];
  sum = warp_reduce(sum, Sum{});
  if (lane == 0) others[t] = sum + static_cast<T>(kOthersFloor);
}

}  // namespace st_moe::cuda
