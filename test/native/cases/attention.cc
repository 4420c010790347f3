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
  for (int64_t b = 0; b < a.B; ++b)
    for (int64_t h = 0; h < a.heads; ++h)
      for (int64_t i = 0; i < a.Nq; ++i) {
        const auto query = [&](int64_t c) { return ((b * a.Nq + i) * a.heads + h) * a.d + c; };
        const auto key = [&](int64_t j, int64_t c) { return ((b * a.Nk + j) * a.heads + h) * a.d + c; };
        const int64_t seen = a.causal ? i + a.Nk - a.Nq + 1 : a.Nk;
        std::vector<double> probs(static_cast<size_t>(seen)), dprobs(probs);
        double largest = -INFINITY, sum = 0, delta = 0;
        for (int64_t j = 0; j < seen; ++j) {
          for (int64_t c = 0; c < a.d; ++c) {
            probs[j] += q[query(c)] * k[key(j, c)];
            if constexpr (backward) dprobs[j] += dy[query(c)] * v[key(j, c)];
          }
          largest = std::fmax(largest, probs[j] *= a.scale);
        }
        for (double& x : probs) sum += x = std::exp(x - largest);
        for (int64_t j = 0; j < seen; ++j) delta += (probs[j] /= sum) * dprobs[j];
        if constexpr (!backward) p["lse"][(b * a.heads + h) * a.Nq + i] = seen ? largest + std::log(sum) : -INFINITY;
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

struct Heads {
  int64_t B, Nq, Nk, heads, d;
};

enum Mode { kAll, kCausal, kCausalNan, kInfinite };

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

template <class Args>
void add(Table& table, DType dtype, Heads s, Mode mode) {
  const double scale = 1.7 / std::sqrt(static_cast<double>(s.d < 1 ? 1 : s.d));
  const int64_t width = s.heads * s.d;
  Case& c = table
                .add(Args{.dtype = dtype,
                          .B = s.B,
                          .Nq = s.Nq,
                          .Nk = s.Nk,
                          .heads = s.heads,
                          .d = s.d,
                          .scale = scale,
                          .causal = mode == kCausal || mode == kCausalNan})
                .fill([=](Problem& p) { spoil(p, mode, width); })
                .tolerance(dtype == DType::f32 ? 6 : 4, std::is_same_v<Args, AttentionArgs> ? 1 : 2);
  if (s.Nk == 1) c.terms(10);                       // one key has no gradient: terms cancel
  if (mode == kInfinite) c.device_only().terms(2);  // a mean of small numbers
}

}  // namespace

void attention(Table& table) {
  table.loop(attention_loop<AttentionArgs>), table.loop(attention_loop<AttentionBackwardArgs>);
  const Heads heads[] = {{1, 1, 1, 1, 1},     {2, 5, 5, 3, 4},      {2, 5, 5, 2, 8},      {1, 33, 70, 2, 16},
                         {2, 64, 64, 1, 33},  {1, 65, 129, 1, 64},  {1, 40, 131, 1, 130}, {1, 3, 66, 1, 300},
                         {1, 130, 130, 1, 8}, {1, 130, 130, 3, 16}, {2, 70, 200, 1, 20},  {1, 64, 64, 1, 64},
                         {2, 65, 33, 2, 7},   {1, 1, 300, 2, 32},   {1, 129, 1, 1, 4},    {1, 33, 300, 1, 40},
                         {1, 100, 100, 2, 8}, {1, 3, 0, 2, 4},      {1, 4, 0, 2, 8},      {1, 0, 3, 1, 4},
                         {2, 0, 5, 1, 8},     {0, 3, 3, 1, 4},      {0, 4, 4, 2, 8},      {1, 3, 3, 2, 0}};
  const auto both = [&](DType dtype, Heads s, Mode mode) {
    add<AttentionArgs>(table, dtype, s, mode), add<AttentionBackwardArgs>(table, dtype, s, mode);
  };
  for (DType dtype : reals()) {
    for (const Heads& s : heads)
      for (const Mode mode : {kAll, kCausal, kCausalNan})
        if ((mode == kAll || s.Nk >= s.Nq) && (!small() || s.B * s.Nq * s.Nk * s.d < 200'000)) both(dtype, s, mode);
    both(dtype, {1, 3, 130, 1, 1}, kInfinite);
    both(dtype, {1, 3, 60, 1, 1}, kInfinite);
  }
  table.add(AttentionArgs{.dtype = DType::f32, .B = 1, .Nq = 4, .Nk = 3, .heads = 1, .d = 2, .scale = 1, .causal = 1})
      .fails(ErrorCode::shape, "");
}

}  // namespace st_moe::test
