#include "core/ops/moe.h"
#include "core/formulas.h"
#include "cuda/plan.cuh"
#include "cuda/router.cuh"
#include "cuda/selection.cuh"

// Kernels after the GEMM x · wᵀ: the tokens (a warp each), the scores of each expert in a sequence (a block each), the
// rank of each score among them, the weights and losses of each sequence.
namespace st_moe::cuda {

template <class T>
struct ExpertChoice {
  const int32_t* mask;
  const T* logits;
  int32_t *expert_index, *kept, *position;
  T *gate, *weight, *lse;
  T* score;             // [B, E, N]
  double *balance, *z;  // [B], parts of the losses
  UnmaskedTokens unmasked;
  int64_t B, N, E, C;
  bool over_experts;

  __device__ bool masked(int64_t token) const { return mask && mask[token] == 0; }
};

template <class T>
struct ReadToken {
  ExpertChoice<T> r;

  __device__ void operator()(int64_t t, int lane) const {
    const T lse = softmax_row(r.logits + t * r.E, r.over_experts ? r.gate + t * r.E : nullptr, r.E, lane);
    if (lane == 0) r.lse[t] = lse;
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock) scores_kernel(ExpertChoice<T> r) {
  for (int64_t work = blockIdx.x; work < r.B * r.E; work += gridDim.x) {
    const int64_t b = work / r.E, e = work % r.E;
    const auto at = [&](int64_t n) { return (b * r.N + n) * r.E + e; };
    T largest = -static_cast<T>(INFINITY);
    double total = 0;
    if (!r.over_experts) {
      for (int64_t n = threadIdx.x; n < r.N; n += blockDim.x)
        if (!r.masked(b * r.N + n)) largest = Max{}(largest, r.logits[at(n)]);
      largest = block_reduce(largest, Max{}, -static_cast<T>(INFINITY));
      for (int64_t n = threadIdx.x; n < r.N; n += blockDim.x)
        if (!r.masked(b * r.N + n)) total += static_cast<double>(exp_of(r.logits[at(n)] - largest));
      total = block_reduce(total, Sum{}, 0.0);
    }
    for (int64_t n = threadIdx.x; n < r.N; n += blockDim.x) {
      T s = 0;
      if (!r.masked(b * r.N + n))
        s = r.over_experts ? r.gate[at(n)]
                           : static_cast<T>(static_cast<double>(exp_of(r.logits[at(n)] - largest)) / total);
      r.gate[at(n)] = s;
      r.score[work * r.N + n] = s;
    }
  }
}

// A token's rank is how many tokens come before it. Comparing all pairs needs no order among the threads.
template <class T>
struct RankToken {
  ExpertChoice<T> r;

  __device__ void operator()(int64_t i) const {  // of [B, E, N]
    const MatrixIndex at = matrix_index(i, r.N), column = matrix_index(at.row, r.E);
    const int64_t first = column.row * r.N, entry = (first + at.column) * r.E + column.column;
    const T* score = r.score + at.row * r.N;
    const Entry<T> own{score[at.column], static_cast<int32_t>(at.column)};
    int64_t rank = r.masked(first + at.column) ? r.C : 0;
    for (int64_t n = 0; n < r.N && rank < r.C; ++n)
      rank += !r.masked(first + n) && before(Entry<T>{score[n], static_cast<int32_t>(n)}, own);
    r.expert_index[entry] = static_cast<int32_t>(column.column);
    r.kept[entry] = rank < r.C;
    r.position[entry] = rank < r.C ? static_cast<int32_t>(rank) : -1;
  }
};

// Weights of the tokens of a sequence, a warp each, and the sequence's part of the losses.
template <class T>
__global__ void __launch_bounds__(kBlock) finish_kernel(ExpertChoice<T> r) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int64_t b = blockIdx.x; b < r.B; b += gridDim.x) {
    double balance = 0, z = 0;
    for (int64_t t = b * r.N + warp; t < (b + 1) * r.N; t += warps) {
      int32_t taken = 0;
      double total = 0;
      for (int64_t i = t * r.E + lane; i < (t + 1) * r.E; i += kWarp) {
        taken += r.kept[i];
        total += static_cast<double>(r.gate[i]);
      }
      taken = warp_reduce(taken, Sum{});
      total = warp_reduce(total, Sum{});
      const T divisor = static_cast<T>(r.over_experts ? 1 : taken);
      for (int64_t i = t * r.E + lane; i < (t + 1) * r.E; i += kWarp)
        r.weight[i] = r.kept[i] ? r.gate[i] / divisor : T(0);
      if (lane != 0 || r.masked(t)) continue;
      const double mean = total / static_cast<double>(r.E);
      balance += mean * mean;
      z += static_cast<double>(r.lse[t]) * static_cast<double>(r.lse[t]);
    }
    balance = block_reduce(balance, Sum{}, 0.0);
    z = block_reduce(z, Sum{}, 0.0);
    if (threadIdx.x != 0) continue;
    r.balance[b] = r.over_experts ? 0 : balance * static_cast<double>(r.unmasked.in(b));
    r.z[b] = z;
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock) choice_losses_kernel(ExpertChoice<T> r, Losses<T> out) {
  double balance = 0, z = 0;
  for (int64_t b = threadIdx.x; b < r.B; b += blockDim.x) {
    balance += r.balance[b];
    z += r.z[b];
  }
  balance = block_reduce(balance, Sum{}, 0.0);
  z = block_reduce(z, Sum{}, 0.0);
  if (threadIdx.x != 0) return;
  const int64_t tokens = r.unmasked.all().tokens;
  out.write(r.B > 0 ? balance / static_cast<double>(r.B) : 0, tokens > 0 ? z / static_cast<double>(tokens) : 0);
}

template <class T>
static void choose(const Context& ctx, const ExpertChoiceArgs& args) {
  const int64_t B = args.B, N = args.N, E = args.E;
  const CountedTokens counted(ctx, args.mask, B, N);
  Scratch<T> score(ctx, B * E * N);
  Scratch<double> balance(ctx, B), z(ctx, B);
  const ExpertChoice<T> r{args.mask,
                          static_cast<const T*>(args.logits),
                          args.expert_index,
                          args.kept,
                          args.position,
                          static_cast<T*>(args.gate),
                          static_cast<T*>(args.weight),
                          static_cast<T*>(args.lse),
                          score.get(),
                          balance.get(),
                          z.get(),
                          counted.get(),
                          B,
                          N,
                          E,
                          args.C,
                          args.over_experts != 0};
  router_logits(ctx, args);
  by_warp(ctx, B * N, ReadToken<T>{r});
  if (B * N * E > 0) launch(ctx, scores_kernel<T>, grid_for(B * E, 1), kBlock, 0, r);
  elementwise(ctx, B * E * N, RankToken<T>{r});
  if (B > 0) launch(ctx, finish_kernel<T>, grid_for(B, 1), kBlock, 0, r);
  launch(ctx, choice_losses_kernel<T>, 1, kBlock, 0, r, Losses<T>::of(args));
}

void expert_choice(const Context& ctx, const ExpertChoiceArgs& args) {
  check_assignment_count(args.B * args.N, args.E);
  dispatch_float(args.dtype, [&](auto zero) { choose<decltype(zero)>(ctx, args); });
}

template <class T>
struct ChoiceGradient {
  const T* dweight;
  LossGradients<T> losses;
  const int32_t *mask, *kept;
  const T *gate, *logits, *lse;
  T* dl;         // [B, N, E]
  double* mean;  // [B, E] <s, ds> over the tokens of an expert
  UnmaskedTokens unmasked;
  int64_t B, N, E;
  bool over_experts, training;

  __device__ bool masked(int64_t token) const { return mask && mask[token] == 0; }
};

// ds [E] of a token by a warp: through its weights and the load-balancing loss. Lane l has the entries l, l + 32, …
template <class T>
struct ScoreGradient {
  ChoiceGradient<T> g;

  __device__ void operator()(int64_t t, int lane) const {
    const int64_t E = g.E, first = t * E;
    int32_t taken = 0;
    double mean = 0;
    for (int64_t e = lane; e < E; e += kWarp) {
      taken += g.kept[first + e] != 0;
      mean += static_cast<double>(g.gate[first + e]) / static_cast<double>(E);
    }
    taken = warp_reduce(taken, Sum{});
    mean = warp_reduce(mean, Sum{});
    double balance = 0;
    if (g.training && !g.over_experts)
      balance = g.losses.balance() * 2 * static_cast<double>(g.unmasked.in(t / g.N)) / static_cast<double>(g.B * E);
    const T divisor = static_cast<T>(g.over_experts ? 1 : taken);
    for (int64_t e = lane; e < E; e += kWarp) {
      T ds = static_cast<T>(balance * mean);
      if (g.dweight && g.kept[first + e]) ds += g.dweight[first + e] / divisor;
      g.dl[first + e] = g.masked(t) ? T(0) : ds;
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock) column_means_kernel(ChoiceGradient<T> g) {
  for (int64_t work = blockIdx.x; work < g.B * g.E; work += gridDim.x) {
    const int64_t b = work / g.E, e = work % g.E;
    double total = 0;
    for (int64_t t = b * g.N + threadIdx.x; t < (b + 1) * g.N; t += blockDim.x)
      total += static_cast<double>(g.gate[t * g.E + e]) * static_cast<double>(g.dl[t * g.E + e]);
    total = block_reduce(total, Sum{}, 0.0);
    if (threadIdx.x == 0) g.mean[work] = total;
  }
}

template <class T>
struct LogitGradient {
  ChoiceGradient<T> g;

  __device__ void operator()(int64_t t, int lane) const {
    if (g.masked(t)) return;
    const int64_t E = g.E, first = t * E, b = t / g.N;
    T of_token = 0;
    for (int64_t e = lane; g.over_experts && e < E; e += kWarp) of_token += g.gate[first + e] * g.dl[first + e];
    of_token = warp_reduce(of_token, Sum{});
    const double upstream = g.training ? g.losses.z() * 2 / static_cast<double>(g.unmasked.all().tokens) : 0;
    const T scale = static_cast<T>(upstream * static_cast<double>(g.lse[t]));
    for (int64_t e = lane; e < E; e += kWarp) {
      const T mean = g.over_experts ? of_token : static_cast<T>(g.mean[b * E + e]);
      T dl = g.gate[first + e] * (g.dl[first + e] - mean);
      if (g.training) dl += scale * exp_of(g.logits[first + e] - g.lse[t]);
      g.dl[first + e] = dl;
    }
  }
};

template <class T>
static void choice_gradient(const Context& ctx, const ExpertChoiceBackwardArgs& args) {
  const int64_t tokens = args.B * args.N, E = args.E;
  const auto values = [](const void* p) { return static_cast<const T*>(p); };
  const CountedTokens counted(ctx, args.mask, args.B, args.N);
  Scratch<T> dl(ctx, tokens * E);
  Scratch<double> mean(ctx, args.over_experts ? 0 : args.B * E);
  ChoiceGradient<T> g{};
  g.dweight = values(args.dweight), g.losses = LossGradients<T>::of(args), g.mask = args.mask, g.kept = args.kept,
  g.gate = values(args.gate);
  g.logits = values(args.logits), g.lse = values(args.lse), g.dl = dl.get(), g.mean = mean.get();
  g.unmasked = counted.get(), g.B = args.B, g.N = args.N, g.E = E, g.over_experts = args.over_experts,
  g.training = args.training;
  by_warp(ctx, tokens, ScoreGradient<T>{g});
  if (!args.over_experts && tokens * E > 0) launch(ctx, column_means_kernel<T>, grid_for(args.B * E, 1), kBlock, 0, g);
  by_warp(ctx, tokens, LogitGradient<T>{g});
  input_gradients(ctx, args, dl.get());
}

void expert_choice_backward(const Context& ctx, const ExpertChoiceBackwardArgs& args) {
  check_assignment_count(args.B * args.N, args.E);
  dispatch_float(args.dtype, [&](auto zero) { choice_gradient<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
