// Attention, forward and backward.
#include "case.h"

namespace st_moe::test {
namespace {

template <class Args>
void attention_loop(const Args& a, Problem& p) {
  constexpr bool backward = std::is_same_v<Args, AttentionBackwardArgs>;
  std::vector<double> none, &q = p["q"], &k = p["k"], &v = p["v"], &y = p["y"];
  std::vector<double>&dy = backward ? p["dy"] : none, &dq = backward ? p["dq"] : none;
  std::vector<double>&dk = backward ? p["dk"] : none, &dv = backward ? p["dv"] : none;
  const auto shows = [&](int64_t b, int64_t j) { return !p.has("mask") || p["mask"][b * a.Nk + j] != 0; };
  for (int64_t b = 0; b < a.B; ++b)
    for (int64_t h = 0; h < a.heads; ++h)
      for (int64_t i = 0; i < a.Nq; ++i) {
        const auto query = [&](int64_t c) { return ((b * a.Nq + i) * a.heads + h) * a.d + c; };
        const int64_t kv_head = h * a.kv_heads / a.heads;
        const auto key = [&](int64_t j, int64_t c) { return ((b * a.Nk + j) * a.kv_heads + kv_head) * a.d + c; };
        const int64_t seen = std::min(a.visible + i, a.Nk);
        std::vector<double> probs(static_cast<size_t>(seen)), dprobs(probs);
        double largest = -INFINITY, sum = 0, delta = 0;
        for (int64_t j = 0; j < seen; ++j) {
          for (int64_t c = 0; c < a.d; ++c) {
            probs[j] += q[query(c)] * k[key(j, c)];
            if constexpr (backward) dprobs[j] += dy[query(c)] * v[key(j, c)];
          }
          probs[j] = shows(b, j) ? probs[j] * a.scale : -INFINITY;
          largest = std::fmax(largest, probs[j]);
        }
        bool sees = false;
        for (int64_t j = 0; j < seen; ++j) sees |= shows(b, j);
        for (double& x : probs) sum += x = sees ? std::exp(x - largest) : 0;
        for (int64_t j = 0; j < seen && sees; ++j) delta += (probs[j] /= sum) * dprobs[j];
        if constexpr (!backward) p["lse"][(b * a.heads + h) * a.Nq + i] = sees ? largest + std::log(sum) : -INFINITY;
        for (int64_t j = 0; j < seen; ++j)
          for (int64_t c = 0; c < a.d; ++c) {
            if constexpr (!backward) {
              y[query(c)] += probs[j] * v[key(j, c)];
            } else {
              const double ds = probs[j] * (dprobs[j] - delta) * a.scale;
              dq[query(c)] += ds * k[key(j, c)];
              dk[key(j, c)] += ds * q[query(c)];
              dv[key(j, c)] += probs[j] * dy[query(c)];
            }
          }
      }
}

void cached_attention_loop(const CachedAttentionArgs& a, Problem& p) {
  std::vector<double>&q = p["q"], &keys = p["keys"], &values = p["values"], &y = p["y"];
  const int64_t width = a.kv_heads * a.d;
  std::vector<int64_t> first(static_cast<size_t>(a.B), -1);  // row of keys, or not in the cache
  for (int64_t b = 0; b < a.B; ++b) {
    const double slot = p.has("slot") ? p["slot"][b] : double(b), position = p["position"][b];
    if (slot < 0 || slot >= double(a.S) || position < 0 || position > double(a.M - a.N)) continue;
    first[b] = int64_t(slot) * a.M;
    const int64_t to = (first[b] + int64_t(position)) * width;
    std::copy_n(p["k"].begin() + b * a.N * width, a.N * width, keys.begin() + to);
    std::copy_n(p["v"].begin() + b * a.N * width, a.N * width, values.begin() + to);
  }
  for (int64_t i = 0; i < a.B * a.N * a.heads; ++i) {
    const int64_t h = i % a.heads, n = i / a.heads % a.N, b = i / a.heads / a.N;
    if (first[b] < 0) continue;
    const int64_t seen = int64_t(p["position"][b]) + n + 1, at = first[b] * width + h * a.kv_heads / a.heads * a.d;
    std::vector<double> probs(static_cast<size_t>(seen));
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < seen; ++j) {
      for (int64_t c = 0; c < a.d; ++c) probs[j] += q[i * a.d + c] * keys[at + j * width + c] * a.scale;
      largest = std::fmax(largest, probs[j]);
    }
    for (double& x : probs) sum += x = std::exp(x - largest);
    for (int64_t j = 0; j < seen; ++j)
      for (int64_t c = 0; c < a.d; ++c) y[i * a.d + c] += probs[j] / sum * values[at + j * width + c];
  }
}

void rotary_loop(const RotaryArgs& a, Problem& p) {
  const int64_t half = a.d / 2;
  for (int64_t at = 0; at < a.T * a.N * a.heads * half; ++at) {
    const int64_t i = at % half, head = at / half, t = head / a.heads / a.N;
    const double n = double(head / a.heads % a.N) + (p.has("position") ? p["position"][t] : 0);
    const double angle = (a.back ? -1 : 1) * n / std::pow(a.base, 2.0 * double(i) / double(a.d));
    const double x = p["x"][head * a.d + i], z = p["x"][head * a.d + half + i];
    p["y"][head * a.d + i] = x * std::cos(angle) - z * std::sin(angle);
    p["y"][head * a.d + half + i] = z * std::cos(angle) + x * std::sin(angle);
  }
}

struct Heads {
  int64_t B, Nq, Nk, heads, d, kv_heads = 0;  // 0: as many as heads
};

enum Mode { kAll, kCausal, kFirst, kCausalNan, kInfinite, kMasked, kMaskedCausal };

// kFirst: the triangle begins at the first key, in the other causal modes it ends at the last.
int64_t visible(Mode mode, Heads s) {
  if (mode == kFirst) return 1;
  return mode == kCausal || mode == kCausalNan || mode == kMaskedCausal ? s.Nk - s.Nq + 1 : std::max<int64_t>(s.Nk, 1);
}

// kCausalNan: the last key and value, which only the last query sees, and the first query, which sees few keys, hold
// NaNs. kInfinite (d = 1): the first 66 scores of each row are −∞.
void spoil(Problem& p, Mode mode, int64_t width) {
  std::vector<double>&q = p["q"], &k = p["k"], &v = p["v"];
  if (mode == kCausalNan && !k.empty() && !q.empty()) {
    k.back() = v.back() = q.front() = NAN;
    if (p.has("dy")) p["dy"][width - 1] = NAN;
  }
  if (mode != kInfinite) return;
  std::fill(q.begin(), q.end(), 1);
  for (size_t j = 0; j < 66 && j < k.size(); ++j) k[j] = -INFINITY;
}

// Padding at the begin of the first sequence, and some in the others; its rows of k and v are zeros.
void pad(Problem& p, int64_t Nk, int64_t kv_width) {
  std::vector<double>& mask = p["mask"];
  for (size_t j = 0; j < mask.size(); ++j) {
    mask[j] = static_cast<int64_t>(j) < Nk ? static_cast<int64_t>(j) > Nk / 3 : p.random.below(3) != 0;
    if (mask[j] == 0)
      for (const char* name : {"k", "v"}) std::fill_n(p[name].begin() + int64_t(j) * kv_width, kv_width, 0);
  }
}

template <class Args>
void add(Table& table, DType dtype, Heads s, Mode mode) {
  const double scale = 1.7 / std::sqrt(static_cast<double>(s.d < 1 ? 1 : s.d));
  const int64_t width = s.heads * s.d, kv_heads = s.kv_heads ? s.kv_heads : s.heads;
  const bool masked = mode == kMasked || mode == kMaskedCausal;
  Case& c = table
                .add(Args{.dtype = dtype,
                          .B = s.B,
                          .Nq = s.Nq,
                          .Nk = s.Nk,
                          .heads = s.heads,
                          .kv_heads = kv_heads,
                          .d = s.d,
                          .scale = scale,
                          .visible = visible(mode, s)})
                .fill([=](Problem& p) { spoil(p, mode, width); })
                // of gradients 2.4e-6 with the arithmetic of a GPU (ST_MOE_DEVICE_MATH)
                .tolerance(dtype == DType::f32 ? 6 : 4, std::is_same_v<Args, AttentionArgs> ? 1 : 3);
  if (masked)
    c.fill([=](Problem& p) { pad(p, s.Nk, kv_heads * s.d); });
  else
    c.without("mask");
  if (s.Nk == 1 || (mode == kFirst && s.Nq == 1)) c.terms(10);  // one key has no gradient: terms cancel
  if (mode == kInfinite) c.device_only().terms(2);              // a mean of small numbers
}

}  // namespace

void attention(Table& table) {
  table.loop(attention_loop<AttentionArgs>), table.loop(attention_loop<AttentionBackwardArgs>);
  const Heads heads[] = {{1, 1, 1, 1, 1},     {2, 5, 5, 3, 4},      {2, 5, 5, 2, 8},      {1, 33, 70, 2, 16},
                         {2, 64, 64, 1, 33},  {1, 65, 129, 1, 64},  {1, 40, 131, 1, 130}, {1, 3, 66, 1, 300},
                         {1, 130, 130, 1, 8}, {1, 130, 130, 3, 16}, {2, 70, 200, 1, 20},  {1, 64, 64, 1, 64},
                         {2, 65, 33, 2, 7},   {1, 1, 300, 2, 32},   {1, 129, 1, 1, 4},    {1, 33, 300, 1, 40},
                         {1, 100, 100, 2, 8}, {1, 3, 0, 2, 4},      {1, 4, 0, 2, 8},      {1, 0, 3, 1, 4},
                         {2, 0, 5, 1, 8},     {0, 3, 3, 1, 4},      {0, 4, 4, 2, 8},      {1, 3, 3, 2, 0},
                         {2, 70, 70, 70, 4},  {1, 130, 130, 90, 2}};  // enough heads for one or two copies of dq
  const auto both = [&](DType dtype, Heads s, Mode mode) {
    add<AttentionArgs>(table, dtype, s, mode), add<AttentionBackwardArgs>(table, dtype, s, mode);
  };
  for (DType dtype : reals()) {
    for (const Heads& s : heads)
      for (const Mode mode : {kAll, kFirst, kCausal, kCausalNan})
        if ((mode == kAll || mode == kFirst || s.Nk >= s.Nq) && (!small() || s.B * s.Nq * s.Nk * s.d < 200'000))
          both(dtype, s, mode);
    for (const Heads& s : {Heads{2, 5, 5, 4, 4, 2}, {1, 33, 70, 6, 16, 2}, {2, 65, 65, 3, 7, 1}, {2, 130, 130, 2, 8}})
      for (const Mode mode : {kAll, kCausal, kFirst, kMasked, kMaskedCausal}) both(dtype, s, mode);
    both(dtype, {1, 3, 130, 1, 1}, kInfinite);
    both(dtype, {1, 3, 60, 1, 1}, kInfinite);
  }
  table.loop(cached_attention_loop);
  struct Cached {
    int64_t B, N, S, M, heads, kv_heads, d;
  };
  for (DType dtype : reals())
    for (const Cached& s : {Cached{1, 1, 1, 1, 1, 1, 1},
                            {2, 1, 3, 9, 4, 4, 8},
                            {3, 4, 5, 40, 6, 2, 17},
                            {1, 1, 2, 600, 2, 1, 33},
                            {2, 70, 2, 70, 1, 1, 64},
                            {1, 3, 1, 300, 1, 1, 300},
                            {0, 1, 2, 4, 1, 1, 4},
                            {1, 0, 1, 4, 2, 2, 4}}) {
      const CachedAttentionArgs args{.dtype = dtype,
                                     .B = s.B,
                                     .N = s.N,
                                     .S = s.S,
                                     .M = s.M,
                                     .heads = s.heads,
                                     .kv_heads = s.kv_heads,
                                     .d = s.d,
                                     .scale = 0.3};
      const Fill places = [=](Problem& p) {
        for (int64_t b = 0; b < s.B; ++b) {
          p["position"][b] = static_cast<double>((s.M - s.N) * (b + 1) / s.B);
          if (p.has("slot")) p["slot"][b] = static_cast<double>(s.S - 1 - b);
        }
      };
      table.add(args).fill(places).tolerance(dtype == DType::f32 ? 6 : 4, dtype == DType::f32 ? 3 : 1);
      table.add(args).without("slot").fill(places).tolerance(dtype == DType::f32 ? 6 : 4, dtype == DType::f32 ? 3 : 1);
      if (s.B < 2) continue;
      for (const int64_t position : {int64_t{-1}, s.M - s.N + 1}) {
        const Fill wrong = [=](Problem& p) { p["position"][1] = static_cast<double>(position); };
        table.add(args).fill(places).fill(wrong).fails(ErrorCode::option, "got " + std::to_string(position) + " at 1");
      }
      const Fill outside = [=](Problem& p) { p["slot"][0] = static_cast<double>(s.S); };
      table.add(args).fill(places).fill(outside).fails(ErrorCode::option, "got " + std::to_string(s.S) + " at 0");
    }
  table.loop(rotary_loop);
  for (DType dtype : kReals)
    for (const Heads& s : {Heads{2, 5, 0, 3, 4}, {1, 300, 0, 2, 64}, {3, 1, 0, 1, 2}, {0, 4, 0, 2, 8}, {2, 3, 0, 2, 0}})
      for (const int32_t back : {0, 1}) {
        const RotaryArgs args{
            .dtype = dtype, .T = s.B, .N = s.Nq, .heads = s.heads, .d = s.d, .base = 10000, .back = back};
        const Fill places = [=](Problem& p) {
          for (int64_t t = 0; t < s.B; ++t) p["position"][t] = static_cast<double>(100 - 60 * t);
        };
        table.add(args).without("position");
        table.add(args).fill(places);
      }
}

}  // namespace st_moe::test
