#pragma once
#include "cpu/gemm.h"
#include "cpu/plan.h"
#include "cpu/simd.h"

// What routers have in common. Args are those of a router's forward or backward.
namespace st_moe::cpu::ST_MOE_ISA {

// logits [B, N, E] = x · wᵀ
template <class T, class Args>
static void router_logits(const Context& ctx, const Args& args) {
  const MatrixView<T> x{static_cast<const T*>(args.x), args.D, 1}, w{static_cast<const T*>(args.w), 1, args.D};
  const GemmProblem<T> problem{args.B * args.N, args.E, args.D, x, w, static_cast<T*>(args.logits), args.E};
  gemm(ctx, &problem, 1);
}

template <class T, class Args>
static void write_losses(const Args& args, double balance, double z) {
  if (!args.training) balance = z = 0;
  *static_cast<T*>(args.balance_loss) = static_cast<T>(balance);
  *static_cast<T*>(args.z_loss) = static_cast<T>(z);
  *static_cast<T*>(args.total_loss) =
      args.training ? static_cast<T>(args.balance_loss_coef * balance + args.router_z_loss_coef * z) : T(0);
}

// The upstream gradients of the losses, each with its part of that of the total.
template <class T>
struct LossGradients {
  double balance, z;

  template <class Args>
  static LossGradients of(const Args& args) {
    const double total = value(args.dtotal_loss);
    return {value(args.dbalance_loss) + args.balance_loss_coef * total,
            value(args.dz_loss) + args.router_z_loss_coef * total};
  }
  static double value(const void* p) { return p ? static_cast<double>(*static_cast<const T*>(p)) : 0; }
};

// The tokens that are not masked, in order.
struct Unmasked {
  Scratch<int32_t> token;
  Scratch<int64_t> offset;  // [B + 1], of the first of each sequence
  int64_t count = 0;

  template <class Args>
  explicit Unmasked(const Args& args) : token(args.B * args.N), offset(args.B + 1) {
    for (int64_t b = 0; b < args.B; ++b) {
      offset[b] = count;
      for (int64_t t = b * args.N; t < (b + 1) * args.N; ++t)
        if (!args.mask || args.mask[t] != 0) token[count++] = static_cast<int32_t>(t);
    }
    offset[args.B] = count;
  }
  int64_t in_sequence(int64_t b) const { return offset[b + 1] - offset[b]; }
};

// dw = dlᵀ x and dx, or its part of dx_sum, = dl · w of the gradient dl [unmasked tokens, E] of the logits. It holds no
// other rows: a masked row of x may be anything, even NaN, and must not reach dw.
template <class T, class Args>
static void input_gradients(const Context& ctx, const Args& args, const Unmasked& unmasked, const T* dl) {
  const int64_t D = args.D, E = args.E, tokens = args.B * args.N;
  const T *x = static_cast<const T*>(args.x), *w = static_cast<const T*>(args.w);
  const int32_t* rows = args.mask ? unmasked.token.get() : nullptr;
  if (args.dw) {
    const GemmProblem<T> problem{E, D, unmasked.count, {dl, 1, E}, {x, D, 1, rows}, static_cast<T*>(args.dw), D};
    gemm(ctx, &problem, 1);
  }
  T* dx = static_cast<T*>(args.dx ? args.dx : args.dx_sum);
  if (!dx) return;
  Scratch<T> packed(args.mask ? unmasked.count * D : 0);
  GemmProblem<T> problem{unmasked.count, D, E, {dl, E, 1}, {w, D, 1}, args.mask ? packed.get() : dx, D};
  problem.accumulate = args.dx_sum != nullptr;
  gemm(ctx, &problem, 1);
  if (!args.mask) return;
  Scratch<int32_t> packed_row(tokens);
  for (int64_t t = 0; t < tokens; ++t) packed_row[t] = -1;
  for (int64_t i = 0; i < unmasked.count; ++i) packed_row[unmasked.token[i]] = static_cast<int32_t>(i);
  parallel_blocks(ctx, tokens, rows_per_task(D * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      weighted_sum<T>(dx + t * D, D, 1, nullptr,
                      [&](int64_t) { return packed_row[t] < 0 ? nullptr : packed.get() + packed_row[t] * D; });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
