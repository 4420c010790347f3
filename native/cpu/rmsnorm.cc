#include <cmath>

#include "core/ops/layers.h"
#include "core/rmsnorm.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
static void normalize(const Context& ctx, const RmsnormArgs& args) {
  const T *all = static_cast<const T*>(args.x), *__restrict gamma = static_cast<const T*>(args.gamma);
  const int64_t D = args.D;
  parallel_blocks(ctx, args.T, max_of<int64_t>(1, kElementBlock / D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* __restrict x = all + t * D;
      T* __restrict y = static_cast<T*>(args.y) + t * D;
      const T factor = static_cast<T>(rms_factor(std::sqrt(wide_dot(x, x, D)), D));
      for (int64_t j = 0; j < D; ++j) y[j] = x[j] * factor * gamma[j];
    }
  });
}

void rmsnorm(const Context& ctx, const RmsnormArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) { normalize<decltype(zero)>(ctx, args); });
}

// One row: its gradient dx + addend, and dgamma += dy √D x / max(‖x‖, 1e-12).
template <class T>
static inline void row_backward(const T* __restrict dy, const T* __restrict x, const T* __restrict gamma,
                                const T* __restrict addend, int64_t D, T* __restrict dx, double* __restrict dgamma) {
  const double norm = std::sqrt(wide_dot(x, x, D));
  if (dx) {
    const double inner = wide_reduce<T>(D, [&](auto at) { return at(gamma) * at(dy) * at(x); });
    const RmsnormGradient<T> gradient(norm, inner, D);
    for (int64_t j = 0; j < D; ++j) dx[j] = gradient.of(gamma[j], dy[j], x[j]);
  }
  if (dx && addend)
    for (int64_t j = 0; j < D; ++j) dx[j] = addend[j] + dx[j];
  if (!dgamma) return;
  const double factor = rms_factor(norm, D);
  for (int64_t j = 0; j < D; ++j) dgamma[j] += factor * static_cast<double>(x[j]) * static_cast<double>(dy[j]);
}

template <class T>
static void normalize_backward(const Context& ctx, const RmsnormBackwardArgs& args) {
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  const T *gamma = static_cast<const T*>(args.gamma), *addend = static_cast<const T*>(args.dx_addend);
  T *dx = static_cast<T*>(args.dx), *dgamma = static_cast<T*>(args.dgamma);
  const int64_t D = args.D, block = row_block(args.T), blocks = ceil_div(args.T, block);
  Scratch<double> partial(dgamma ? blocks * D : 0);
  parallel_blocks(ctx, args.T, block, [&](int64_t begin, int64_t end) {
    double* sums = dgamma ? partial.get() + begin / block * D : nullptr;
    for (int64_t j = 0; sums && j < D; ++j) sums[j] = 0;
    for (int64_t t = begin; t < end; ++t)
      row_backward(dy + t * D, x + t * D, gamma, addend ? addend + t * D : nullptr, D, dx ? dx + t * D : nullptr, sums);
  });
  if (dgamma) add_partials(partial.get(), blocks, D, dgamma);
}

void rmsnorm_backward(const Context& ctx, const RmsnormBackwardArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) { normalize_backward<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
