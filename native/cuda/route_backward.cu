#include "cuda/ops.h"

#include "core/formulas.h"
#include "cuda/assignments.cuh"
#include "cuda/blas.h"
#include "cuda/soft_topk.cuh"

namespace st_moe::cuda {

// Tokens that are not masked, for the mean of the losses.
struct TokenCounts {
  int64_t tokens, sequences;  // sequences: those with such tokens
};

struct CountSequence {  // a sequence by a warp
  const int32_t* mask;
  int64_t* unmasked;  // [B]
  int64_t N;

  __device__ void operator()(int64_t b, int lane) const {
    int64_t count = 0;
    for (int64_t n = lane; n < N; n += kWarp) count += mask[b * N + n] != 0;
    count = warp_reduce(count, Sum{});
    if (lane == 0) unmasked[b] = count;
  }
};

template <class Index>
__global__ void __launch_bounds__(kBlock) total_counts_kernel(const Index* unmasked, Index B, TokenCounts* counts) {
  Index tokens = 0, sequences = 0;
  for (Index b = threadIdx.x; b < B; b += blockDim.x) {
    tokens += unmasked[b];
    sequences += unmasked[b] > 0;
  }
  tokens = block_reduce(tokens, Sum{}, Index{0});
  sequences = block_reduce(sequences, Sum{}, Index{0});
  if (threadIdx.x == 0) *counts = {tokens, sequences};
}

// dl [B, N, E] = gradient of the logits, a token by a warp. Lane l touches the entries l, l + 32, … of a row only.
// Rows of masked tokens are zero.
template <class T>
struct LogitsGradient {
  const T *dweight, *dbalance, *dz, *dtotal;
  const int32_t *mask, *expert_index, *kept;
  const T *gate, *probs, *logits, *lse, *density;
  T* dl;
  int64_t B, N, E, K;
  T eps;
  double balance_coef, z_coef;
  bool noisy, training, soft;
  const int64_t* unmasked;           // [B], with a mask
  const TokenCounts* masked_counts;  // with a mask
  Stream::Fault* fault;

  __device__ static double scalar(const T* value) { return value ? static_cast<double>(*value) : 0; }

  __device__ bool expert_at(int64_t i, int32_t* expert) const {
    *expert = expert_index[i];
    if (*expert >= 0 && *expert < E) return true;
    report_fault(fault, kExpertFault, *expert);
    return false;
  }

  // ds [E] = gradient of the probabilities through the gates of token t
  __device__ void through_gates(int64_t t, T* ds, int lane) const {
    for (int64_t e = lane; e < E; e += kWarp) ds[e] = 0;
    if (!dweight) return;
    const T *s = probs + t * E, *g = gate + t * K;
    const SoftTopk<T> soft_topk(E, K, lane);
    T a[kSoftTopkIterations + 1] = {};
    if (soft) soft_topk.descend(s, a);
    T total = 0, mean = 0;
    int32_t expert;
    for (int64_t k = lane; k < K; k += kWarp) {
      if (!expert_at(t * K + k, &expert)) continue;
      total += soft ? SoftTopk<T>::score(s[expert], a[kSoftTopkIterations]) : s[expert];
      if (kept[t * K + k]) mean += dweight[t * K + k] * g[k];
    }
    total = warp_reduce(total, Sum{});
    mean = warp_reduce(mean, Sum{});
    for (int64_t k = 0; k < K; ++k) {
      expert = expert_index[t * K + k];
      if (expert < 0 || expert >= E || expert % kWarp != lane) continue;
      const T dg = kept[t * K + k] ? dweight[t * K + k] : T(0);
      ds[expert] += total < eps ? dg / eps : (dg - mean) / total;
    }
    if (soft) soft_topk.backward(s, a, ds);
  }

  __device__ void operator()(int64_t t, int lane) const {
    T* row = dl + t * E;
    if (mask && mask[t] == 0) {
      for (int64_t e = lane; e < E; e += kWarp) row[e] = 0;
      return;
    }
    const int64_t b = t / N;
    const T *s = probs + t * E, *l = logits + t * E, *f = density + b * E;
    through_gates(t, row, lane);
    const TokenCounts counts = mask ? *masked_counts : TokenCounts{B * N, B};
    if (training) {
      const double upstream = scalar(dbalance) + balance_coef * scalar(dtotal);
      const double sequences = static_cast<double>(counts.sequences),
                   tokens = static_cast<double>(mask ? unmasked[b] : N);
      const T scale = static_cast<T>(upstream * static_cast<double>(E) / sequences / tokens);
      for (int64_t e = lane; e < E; e += kWarp) row[e] += scale * f[e];
    }
    T mean = 0;
    for (int64_t e = lane; e < E; e += kWarp) mean += s[e] * row[e];
    mean = warp_reduce(mean, Sum{});
    for (int64_t e = lane; e < E; e += kWarp) row[e] = s[e] * (row[e] - mean);
    if (!training) return;
    // The noise is in s, not in l.
    const double upstream = (scalar(dz) + z_coef * scalar(dtotal)) * 2 / static_cast<double>(counts.tokens);
    const T scale = static_cast<T>(upstream * static_cast<double>(lse[t]));
    for (int64_t e = lane; e < E; e += kWarp) row[e] += scale * (noisy ? exp_of(l[e] - lse[t]) : s[e]);
  }
};

// y [B, N, D] = x, with zeros in the rows of masked tokens. y may be x.
template <class T>
struct ClearMasked {
  const T* x;
  T* y;
  const int32_t* mask;
  int64_t D;

  __device__ void operator()(int64_t i) const {
    const bool masked = mask[place_of(i, D).row] == 0;
    if (masked || y != x) y[i] = masked ? T(0) : x[i];
  }
};

template <class T>
static LogitsGradient<T> gradient_of(const Context& ctx, const RouteBackwardArgs& args) {
  LogitsGradient<T> g{};
  const auto values = [](const void* p) { return static_cast<const T*>(p); };
  g.dweight = values(args.dweight), g.dbalance = values(args.dbalance), g.dz = values(args.dz);
  g.dtotal = values(args.dtotal);
  g.mask = args.mask, g.expert_index = args.expert_index, g.kept = args.kept;
  g.gate = values(args.gate), g.probs = values(args.probs), g.logits = values(args.logits), g.lse = values(args.lse);
  g.density = values(args.density);
  g.B = args.B, g.N = args.N, g.E = args.E, g.K = args.K;
  g.eps = static_cast<T>(args.eps), g.balance_coef = args.balance_coef, g.z_coef = args.z_coef;
  g.noisy = args.noisy, g.training = args.training, g.soft = args.differentiable_topk;
  g.fault = stream_of(ctx).fault();
  return g;
}

template <class T>
static void route_backward_as(const Context& ctx, const RouteBackwardArgs& args) {
  const int64_t B = args.B, D = args.D, E = args.E, tokens = args.B * args.N;
  LogitsGradient<T> gradient = gradient_of<T>(ctx, args);
  const bool masks = args.mask && tokens > 0;
  Scratch<T> dl(ctx, tokens * E), clean(ctx, masks && args.dw ? tokens * D : 0);
  Scratch<int64_t> unmasked(ctx, masks ? B : 0);
  Scratch<TokenCounts> counts(ctx, masks ? 1 : 0);
  if (masks) {
    by_warp(ctx, B, CountSequence{args.mask, unmasked.get(), args.N});
    launch(ctx, total_counts_kernel<int64_t>, 1, kBlock, 0, unmasked.get(), B, counts.get());
  }
  gradient.dl = dl.get(), gradient.unmasked = unmasked.get(), gradient.masked_counts = counts.get();
  by_warp(ctx, tokens, gradient);

  if (args.dw) {  // a masked row of x may be anything, even NaN, and must not reach dw
    const T* x = static_cast<const T*>(args.x);
    if (masks) elementwise(ctx, tokens * D, ClearMasked<T>{x, clean.get(), args.mask, D});
    Product product{E, D, tokens, dl.get(), masks ? clean.get() : x, args.dw, E, D, D};
    product.transpose_a = true;
    multiply(ctx, args.dtype, args.dtype, product);
  }
  if (args.dx && tokens > 0) {
    multiply(ctx, args.dtype, args.dtype, Product{tokens, D, E, dl.get(), args.w, args.dx, E, D, D});
    T* dx = static_cast<T*>(args.dx);
    if (masks) elementwise(ctx, tokens * D, ClearMasked<T>{dx, dx, args.mask, D});
  }
}

void route_backward(const Context& ctx, const RouteBackwardArgs& args) {
  check_assignment_count(args.B * args.N, args.K);
  dispatch_float(args.dtype, [&](auto zero) { route_backward_as<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
