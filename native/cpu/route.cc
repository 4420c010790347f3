#include <cmath>

#include "core/formulas.h"
#include "core/philox.h"
#include "core/router.h"
#include "cpu/router.h"
#include "cpu/selection.h"
#include "cpu/soft_topk.h"

namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kTokenBlock = 128;  // tokens of one sequence whose loss terms are added up before they are combined

// Uniforms of a sample in rising order of index: a Philox block is computed once for its four words.
class Uniforms {
 public:
  Uniforms(uint64_t seed, uint64_t step) : seed_(seed), step_(step) {}
  float operator()(int64_t index) {
    const uint64_t i = static_cast<uint64_t>(index);
    if (i >> 2 != held_) {
      held_ = i >> 2;
      block_ = philox(seed_, step_, held_);
    }
    return uniform24(block_.word[i & 3]);
  }

 private:
  uint64_t seed_, step_, held_ = UINT64_MAX;
  PhiloxBlock block_{};
};

// y = softmax(x); returns logsumexp(x). y may be x.
template <class T>
static T softmax_row(const T* x, T* y, int64_t E) {
  T largest = x[0];
  for (int64_t e = 1; e < E; ++e) largest = max_of(largest, x[e]);
  for (int64_t e = 0; e < E; ++e) y[e] = exp_of(x[e] - largest);
  const T total = sum(y, E);
  for (int64_t e = 0; e < E; ++e) y[e] /= total;
  return largest + log_of(total);
}

// Sums over the tokens of a sequence that are not masked, or over a block of them.
struct Sums {
  int64_t tokens = 0, whole = 0;  // whole: of importance 1
  double z = 0;                   // Σ lse² of those
};

template <class T>
struct Router {
  const RouteArgs& args;
  const RouterNumbers<T> numbers;
  const T *uniforms, *gumbel_uniforms, *second_place_uniforms, *expert_bias;
  T *gate, *weight, *probs, *logits, *lse, *density, *second_density;

  explicit Router(const RouteArgs& a)
      : args(a),
        numbers(RouterNumbers<T>::of(a)),
        uniforms(static_cast<const T*>(a.uniforms)),
        gumbel_uniforms(static_cast<const T*>(a.gumbel_uniforms)),
        second_place_uniforms(static_cast<const T*>(a.second_place_uniforms)),
        expert_bias(static_cast<const T*>(a.expert_bias)),
        gate(static_cast<T*>(a.gate)),
        weight(static_cast<T*>(a.weight)),
        probs(static_cast<T*>(a.probs)),
        logits(static_cast<T*>(a.logits)),
        lse(static_cast<T*>(a.lse)),
        density(static_cast<T*>(a.density)),
        second_density(static_cast<T*>(a.second_density)) {}

  bool masked(int64_t t) const { return is_padding(args.mask, t); }
  bool partial(int64_t t) const { return is_partial(args.mask, t); }

  // Columns of the sums of a block: of s, and of s without the first choice, divided by its sum.
  int64_t columns() const { return second_density ? 2 * args.E : args.E; }

  T gumbel_uniform(int64_t i, Uniforms& noise) const {
    return gumbel_uniforms ? gumbel_uniforms[i] : static_cast<T>(noise(i));
  }

  // The expert of the largest l + temperature · Gumbel noise.
  int64_t sample(int64_t t, T temperature, Uniforms& noise) const {
    int64_t best = 0;
    T largest = 0;
    for (int64_t e = 0; e < args.E; ++e) {
      const int64_t i = t * args.E + e;
      const T value = logits[i] + temperature * gumbel(gumbel_uniform(i, noise));
      if (e == 0 || value > largest) best = e, largest = value;
    }
    return best;
  }

  // Lowers the logits that a token must not choose by, if its number says that it uses its second place.
  void use_second_place(int64_t t, Uniforms& noise, Uniforms& uniform) const {
    const T u = second_place_uniforms ? second_place_uniforms[t] : static_cast<T>(uniform(t));
    if (!(u < numbers.second_place_prob)) return;
    T* l = logits + t * args.E;
    int64_t best = 0;
    for (int64_t e = 1; e < args.E; ++e)
      if (l[e] > l[best]) best = e;
    l[best] -= static_cast<T>(kLowered);
    if (numbers.second_place_temperature < 0) return;
    const int64_t chosen = sample(t, numbers.second_place_temperature, noise);
    for (int64_t e = 0; e < args.E; ++e)
      if (e != chosen) l[e] -= static_cast<T>(kLowered);
  }

  // −inf for the keys outside the top groups. score, sorted [groups]
  void keep_top_groups(T* key, T* score, T* sorted, int32_t* group_index) const {
    const int64_t groups = args.routing_groups, size = args.E / groups;
    for (int64_t g = 0; g < groups; ++g) score[g] = group_score(key + g * size, size);
    select_row(score, groups, args.top_groups, sorted, group_index);
    for (int64_t g = 0; g < groups; ++g) score[g] = 0;
    for (int64_t i = 0; i < args.top_groups; ++i) score[group_index[i]] = 1;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t e = g * size; score[g] == 0 && e < (g + 1) * size; ++e) key[e] = -static_cast<T>(INFINITY);
  }

  // What the experts are chosen by, if that is not the probabilities themselves. work [3E], group_index [groups]
  const T* keys(int64_t t, Uniforms& noise, T* work, int32_t* group_index) const {
    const int64_t E = args.E;
    const T *l = logits + t * E, *s = probs + t * E;
    T *key = work, *score = key + E, *sorted = score + E;
    for (int64_t e = 0; e < E; ++e) key[e] = numbers.key(l[e], s[e]) + (expert_bias ? expert_bias[e] : T(0));
    const int64_t forced = args.sample_experts ? sample(t, numbers.router_temperature, noise) : -1;
    if (args.routing_groups > 1) keep_top_groups(key, score, sorted, group_index);
    if (forced >= 0) key[forced] = static_cast<T>(INFINITY);
    return key;
  }

  bool chooses_by_probability() const {
    return numbers.score_function == ScoreFunction::softmax && !expert_bias && args.routing_groups <= 1 &&
           !args.sample_experts;
  }

  // Probabilities, experts and gates of a token; the experts of a NaN row are 0 … K−1. work [3E]
  void choose(int64_t t, Uniforms& noise, T* work, int32_t* group_index) const {
    const int64_t E = args.E, K = args.K;
    const T* l = logits + t * E;
    T *s = probs + t * E, *g = gate + t * K;
    int32_t* index = args.expert_index + t * K;
    if (args.noise_gates) {
      lse[t] = softmax_row(l, work, E);
      for (int64_t e = 0; e < E; ++e) s[e] = numbers.noisy(l[e], gumbel_uniform(t * E + e, noise));
      softmax_row(s, s, E);
    } else {
      lse[t] = softmax_row(l, s, E);
    }
    const T* score = s;  // what becomes the gates
    if (args.differentiable_topk) {
      T *c = work, *selection = work + E;
      SoftTopk<T>(E, K, work + 2 * E).forward(s, c);
      for (int64_t e = 0; e < E; ++e) selection[e] = s[e] * (c[e] + (T(1) - c[e]));
      select_row(selection, E, K, g, index);
      score = c;
    } else {
      select_row(chooses_by_probability() ? s : keys(t, noise, work, group_index), E, K, g, index);
    }
    if (partial(t) && K > 1) {
      const int32_t best = index[0];
      index[0] = index[1], index[1] = best;
    }
    T total = 0;
    for (int64_t k = 0; k < K; ++k) {
      const bool unused = partial(t) && k != 1;
      total += weight[t * K + k] = unused ? T(0) : numbers.score(l[index[k]], score[index[k]]);
    }
    for (int64_t k = 0; k < K; ++k) {
      T& w = weight[t * K + k];
      g[k] = masked(t) ? T(0) : numbers.gate(w, total);
      w = numbers.weight(w, g[k]);
    }
  }

  // `kept` says for now which assignments are routed.
  void choose_block(int64_t begin, int64_t end, double* prob_sum, Sums& sums) const {
    const int64_t E = args.E, K = args.K, tokens = args.B * args.N;
    Scratch<T> work(3 * E);
    Scratch<int32_t> group_index(max_of<int64_t>(1, args.top_groups));
    Uniforms noise(args.seed, args.gumbel_step), uniform(args.seed, args.step);
    Uniforms second_place(args.seed, args.second_place_step);
    for (int64_t i = 0; i < columns(); ++i) prob_sum[i] = 0;
    sums = Sums{};
    for (int64_t t = begin; t < end; ++t) {
      if (args.second_place_prob > 0) use_second_place(t, noise, second_place);
      choose(t, noise, work.get(), group_index.get());
      if (masked(t)) continue;
      ++sums.tokens;
      if (second_density) add_second_place(t, prob_sum + E);
      if (!is_whole(args.mask, t)) continue;
      for (int64_t e = 0; e < E; ++e) prob_sum[e] += static_cast<double>(probs[t * E + e]);
      sums.z += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
      ++sums.whole;
    }
    for (int64_t k = 0; k < K; ++k)
      for (int64_t t = begin; t < end; ++t) {
        bool is_routed = !masked(t) && (!partial(t) || (k == 1 && !args.ntlb));
        if (is_routed && k > 0) {
          const T u = uniforms ? uniforms[k * tokens + t] : static_cast<T>(uniform(k * tokens + t));
          is_routed = numbers.is_routed(u, gate[t * K + k], args.threshold[k]);
        }
        args.kept[t * K + k] = is_routed;
      }
  }

  void add_second_place(int64_t t, double* sum) const {
    const T* s = probs + t * args.E;
    const int32_t first = partial(t) ? -1 : args.expert_index[t * args.K];
    double others = kOthersFloor;
    for (int64_t e = 0; e < args.E; ++e) others += e == first ? 0 : static_cast<double>(s[e]);
    for (int64_t e = 0; e < args.E; ++e) sum[e] += e == first ? 0 : static_cast<double>(s[e]) / others;
  }

  // The tokens of a sequence by falling priority, counted from its first token.
  void by_priority(int64_t b, int32_t* order) const {
    const int64_t N = args.N;
    Scratch<T> priority(N), sorted(N);
    for (int64_t n = 0; n < N; ++n) {
      const int64_t t = b * N + n;
      priority[n] = numbers.priority(logits + t * args.E, probs + t * args.E, args.expert_index + t * args.K, args.K);
    }
    select_many(priority.get(), N, N, sorted.get(), order);
  }

  bool has_slot(int64_t t, int64_t choices) const {
    for (int64_t i = t * args.K; i < t * args.K + choices; ++i)
      if (args.position[i] >= 0) return true;
    return false;
  }

  int64_t row(int64_t b, int64_t e, int64_t slot) const { return (e * args.B + b) * args.C + slot; }

  // The row of an assignment that has its slot, or none.
  void place(int64_t b, int64_t e, int64_t i) const {
    const bool kept = args.position[i] >= 0;
    args.row_of[i] = kept ? static_cast<int32_t>(row(b, e, args.position[i])) : -1;
    if (kept) args.assignment[args.row_of[i]] = static_cast<int32_t>(i);
  }

  // Slots and weights of one sequence, by k, then token. used, first, second [E]: slots taken, assignments that count
  // in f, and second choices.
  void assign_slots(int64_t b, int64_t* used, int64_t* first, int64_t* second) const {
    const int64_t E = args.E, K = args.K, N = args.N;
    Scratch<int32_t> order(args.batch_prioritized ? N : 0);
    if (args.batch_prioritized) by_priority(b, order.get());
    for (int64_t e = 0; e < E; ++e) used[e] = first[e] = second[e] = 0;
    for (int64_t e = 0; args.assignment && e < E; ++e)
      for (int64_t slot = 0; slot < args.C; ++slot) args.assignment[row(b, e, slot)] = -1;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = 0; n < N; ++n) {
        const int64_t t = b * N + (args.batch_prioritized ? order[n] : n), i = t * K + k;
        const int32_t e = args.expert_index[i];
        const bool routed = args.kept[i] != 0, kept = routed && used[e] < args.C && !(args.ntlb && has_slot(t, k));
        if ((k == 0 || args.ntlb) && (args.balance_density == BalanceDensity::assigned || args.ntlb ? routed : kept))
          ++first[e];
        if (k == 1 && !masked(t)) ++second[e];
        args.kept[i] = kept;
        args.position[i] = kept ? static_cast<int32_t>(used[e]++) : -1;
        if (args.row_of) place(b, e, i);  // without slots `assignment` is empty, which may be null
        if (!kept) weight[i] = 0;
      }
    if (numbers.normalization != GateNormalization::kept) return;
    for (int64_t t = b * args.N; t < (b + 1) * args.N; ++t) {
      T total = 0;
      for (int64_t i = t * K; i < (t + 1) * K; ++i) total += weight[i];
      for (int64_t i = t * K; i < (t + 1) * K; ++i) weight[i] = numbers.gate(weight[i], total);
    }
  }

  // The block sums of a sequence are combined in order. Returns Σ_e f·P; `sums` become the sequence's.
  double finish_sequence(int64_t b, int64_t blocks, const double* prob_sum, const int64_t* first, const int64_t* second,
                         Sums* sums) const {
    for (int64_t i = 1; i < blocks; ++i) {
      sums[0].tokens += sums[i].tokens;
      sums[0].whole += sums[i].whole;
      sums[0].z += sums[i].z;
    }
    if (args.importance) sums[0].tokens = args.N;
    const double tokens = static_cast<double>(max_of<int64_t>(1, sums[0].tokens));
    const double choices = args.ntlb ? static_cast<double>(args.K) : 1;
    const auto mean = [&](int64_t column) {
      double p = 0;
      for (int64_t i = 0; i < blocks; ++i) p += prob_sum[i * columns() + column];
      return p / tokens;
    };
    double balance = 0;
    for (int64_t e = 0; e < args.E; ++e) {
      const double f = static_cast<double>(first[e]) / choices / tokens;
      density[b * args.E + e] = static_cast<T>(f);
      balance += f * mean(e);
      if (!second_density) continue;
      const double f2 = static_cast<double>(second[e]) / tokens;
      second_density[b * args.E + e] = static_cast<T>(f2);
      balance += 0.5 * f2 * mean(args.E + e);
    }
    return balance;
  }
};

template <class T>
static void route_as(const Context& ctx, const RouteArgs& args) {
  const Router<T> router(args);
  const int64_t B = args.B, N = args.N, E = args.E;
  const int64_t blocks = ceil_div(N, kTokenBlock);  // of a sequence
  router_logits<T>(ctx, args);

  const int64_t columns = router.columns();
  Scratch<double> prob_sum(B * blocks * columns), sequence_balance(B);
  Scratch<Sums> sums(B * blocks);
  parallel_for(ctx, B * blocks, [&](int64_t i) {
    const int64_t begin = i % blocks * kTokenBlock, end = min_of(N, begin + kTokenBlock), offset = i / blocks * N;
    router.choose_block(offset + begin, offset + end, prob_sum.get() + i * columns, sums[i]);
  });
  parallel_for(ctx, B, [&](int64_t b) {
    Scratch<int64_t> counts(3 * E);
    int64_t *used = counts.get(), *first = used + E, *second = first + E;
    router.assign_slots(b, used, first, second);
    sequence_balance[b] = router.finish_sequence(b, blocks, prob_sum.get() + b * blocks * columns, first, second,
                                                 sums.get() + b * blocks);
  });

  int64_t tokens = 0, sequences = 0;
  double balance = 0, z = 0;
  for (int64_t b = 0; b < B && N > 0; ++b) {
    const Sums& sequence = sums[b * blocks];
    if (sequence.tokens == 0) continue;
    tokens += sequence.whole;
    ++sequences;
    balance += sequence_balance[b];
    z += sequence.z;
  }
  write_losses<T>(args, sequences ? balance * static_cast<double>(E) / static_cast<double>(sequences) : 0,
                  tokens ? z / static_cast<double>(tokens) : 0);
}

void route(const Context& ctx, const RouteArgs& args) {
  if (args.assignment) check_assignment_count(args.B * args.N, args.K);
  dispatch_float(args.dtype, [&](auto zero) { route_as<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
