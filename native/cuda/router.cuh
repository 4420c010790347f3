#pragma once
#include "core/router.h"
#include "cuda/blas.h"
#include "cuda/rows.cuh"

// What routers have in common. Args are those of a router's forward or backward.
namespace st_moe::cuda {

// logits [B, N, E] = x · wᵀ
template <class Args>
void router_logits(const Context& ctx, const Args& args) {
  const int64_t tokens = args.B * args.N;
  if (tokens == 0) return;
  Gemm logits{tokens, args.E, args.D, args.x, args.w, args.logits, args.D, args.D, args.E};
  logits.transpose_b = logits.exact = true;
  multiply(ctx, args.dtype, args.dtype, logits);
}

// y = softmax(x) by a warp, y may be x or null; returns logsumexp(x). Lane l touches the entries l, l + 32, … only.
template <class T>
__device__ static inline T softmax_row(const T* x, T* y, int64_t E, int lane) {
  T largest = -static_cast<T>(INFINITY), total = 0;
  for (int64_t e = lane; e < E; e += kWarp) largest = Max{}(largest, x[e]);
  largest = warp_reduce(largest, Max{});
  for (int64_t e = lane; e < E; e += kWarp) {
    const T p = exp_of(x[e] - largest);
    if (y) y[e] = p;
    total += p;
  }
  total = warp_reduce(total, Sum{});
  for (int64_t e = lane; y && e < E; e += kWarp) y[e] /= total;
  return largest + std::log(total);
}

template <class T>
struct Losses {
  T *balance, *z, *total;
  double balance_loss_coef, router_z_loss_coef;
  bool training;

  template <class Args>
  static Losses of(const Args& args) {
    return {static_cast<T*>(args.balance_loss),
            static_cast<T*>(args.z_loss),
            static_cast<T*>(args.total_loss),
            args.balance_loss_coef,
            args.router_z_loss_coef,
            args.training != 0};
  }
  __device__ void write(double balance_value, double z_value) const {
    if (!training) balance_value = z_value = 0;
    *balance = static_cast<T>(balance_value);
    *z = static_cast<T>(z_value);
    *total = training ? static_cast<T>(balance_loss_coef * balance_value + router_z_loss_coef * z_value) : T(0);
  }
};

// The upstream gradients of the losses, each with its part of that of the total; null: 0.
template <class T>
struct LossGradients {
  const T *dbalance, *dz, *dtotal;
  double balance_loss_coef, router_z_loss_coef;

  template <class Args>
  static LossGradients of(const Args& args) {
    return {static_cast<const T*>(args.dbalance_loss), static_cast<const T*>(args.dz_loss),
            static_cast<const T*>(args.dtotal_loss), args.balance_loss_coef, args.router_z_loss_coef};
  }
  __device__ double balance() const { return value(dbalance) + balance_loss_coef * value(dtotal); }
  __device__ double z() const { return value(dz) + router_z_loss_coef * value(dtotal); }
  __device__ static double value(const T* p) { return p ? static_cast<double>(*p) : 0; }
};

struct TokenCounts {
  int64_t tokens, whole, sequences;  // whole: of importance 1; sequences: those with tokens
};

struct CountSequence {  // a sequence by a warp
  const int32_t* mask;
  int64_t *unmasked, *whole;  // [B]
  int64_t N;

  __device__ void operator()(int64_t b, int lane) const {
    int64_t tokens = 0, ones = 0;
    for (int64_t t = b * N + lane; t < (b + 1) * N; t += kWarp) {
      tokens += !is_padding(mask, t);
      ones += is_whole(mask, t);
    }
    tokens = warp_reduce(tokens, Sum{});
    ones = warp_reduce(ones, Sum{});
    if (lane == 0) unmasked[b] = tokens, whole[b] = ones;
  }
};

template <class Index>
__global__ void __launch_bounds__(kBlock)
    total_counts_kernel(const Index* unmasked, const Index* whole, Index B, TokenCounts* counts) {
  Index tokens = 0, ones = 0, sequences = 0;
  for (Index b = threadIdx.x; b < B; b += blockDim.x) {
    tokens += unmasked[b];
    ones += whole[b];
    sequences += unmasked[b] > 0;
  }
  tokens = block_reduce(tokens, Sum{}, Index{0});
  ones = block_reduce(ones, Sum{}, Index{0});
  sequences = block_reduce(sequences, Sum{}, Index{0});
  if (threadIdx.x == 0) *counts = {tokens, ones, sequences};
}

// The tokens that are not masked, of each sequence and in all.
struct UnmaskedTokens {
  const int64_t* in_sequence;  // [B]; null without a mask
  const TokenCounts* counts;
  int64_t B, N;

  __device__ int64_t in(int64_t b) const { return in_sequence ? in_sequence[b] : N; }
  __device__ TokenCounts all() const { return counts ? *counts : TokenCounts{B * N, B * N, B}; }
};

class CountedTokens {
 public:
  CountedTokens(const Context& ctx, const int32_t* mask, int64_t B, int64_t N)
      : B_(B), N_(N), in_sequence_(ctx, mask ? 2 * B : 0), counts_(ctx, mask && B > 0 ? 1 : 0) {
    if (!mask || B == 0) return;
    int64_t *unmasked = in_sequence_.get(), *whole = unmasked + B;
    by_warp(ctx, B, CountSequence{mask, unmasked, whole, N});
    launch(ctx, total_counts_kernel<int64_t>, 1, kBlock, 0, unmasked, whole, B, counts_.get());
  }
  UnmaskedTokens get() const { return {in_sequence_.get(), counts_.get(), B_, N_}; }

 private:
  int64_t B_, N_;
  Scratch<int64_t> in_sequence_;  // unmasked tokens, then those of importance 1
  Scratch<TokenCounts> counts_;
};

// y [B, N, D] = x, with zeros in the rows of masked tokens. y may be x.
template <class T>
struct ClearMasked {
  const T* x;
  T* y;
  const int32_t* mask;
  int64_t D;

  __device__ void operator()(int64_t i) const {
    const bool masked = mask[matrix_index(i, D).row] == 0;
    if (masked || y != x) y[i] = masked ? T(0) : x[i];
  }
};

// dw = dlᵀ x and dx, or its part of dx_sum, = dl · w of the gradient dl [B, N, E] of the logits, whose masked rows are
// zero. A masked row of x may be anything, even NaN, and must not reach dw.
template <class T, class Args>
void input_gradients(const Context& ctx, const Args& args, const T* dl) {
  const int64_t D = args.D, E = args.E, tokens = args.B * args.N;
  const bool masks = args.mask && tokens > 0;
  if (args.dw) {
    Scratch<T> clean(ctx, masks ? tokens * D : 0);
    const T* x = static_cast<const T*>(args.x);
    if (masks) elementwise(ctx, tokens * D, ClearMasked<T>{x, clean.get(), args.mask, D});
    Gemm gemm{E, D, tokens, dl, masks ? clean.get() : x, args.dw, E, D, D};
    gemm.transpose_a = true;
    multiply(ctx, args.dtype, args.dtype, gemm);
  }
  if (void* to = args.dx ? args.dx : args.dx_sum; to && tokens > 0) {
    Gemm gemm{tokens, D, E, dl, args.w, to, E, D, D};
    gemm.accumulate = args.dx_sum != nullptr;
    multiply(ctx, args.dtype, args.dtype, gemm);
    T* dx = static_cast<T*>(to);
    if (masks) elementwise(ctx, tokens * D, ClearMasked<T>{dx, dx, args.mask, D});
  }
}

}  // namespace st_moe::cuda
