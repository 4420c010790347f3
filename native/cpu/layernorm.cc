#include <cmath>

#include "core/ops/layers.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

struct Moments {
  double mean, inverse_std;
};

// Two passes: squares of centered values do not cancel.
template <class T>
static inline Moments moments(const T* x, int64_t D, double eps) {
  const double mean = wide_sum(x, D) / static_cast<double>(D);
  const double squares = wide_reduce<T>(D, [&](auto at) {
    const auto centred = at(x) - mean;
    return centred * centred;
  });
  return {mean, 1.0 / std::sqrt(squares / static_cast<double>(D) + eps)};
}

template <class T>
static void normalize(const Context& ctx, const LayernormArgs& args) {
  const T* __restrict weight = static_cast<const T*>(args.weight), * __restrict bias = static_cast<const T*>(args.bias);
  const int64_t D = args.D;
  parallel_blocks(ctx, args.T, max_of<int64_t>(1, kElementBlock / D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* __restrict x = static_cast<const T*>(args.x) + t * D;
      T* __restrict y = static_cast<T*>(args.y) + t * D;
      const Moments m = moments(x, D, args.eps);
      const T mean = static_cast<T>(m.mean), inverse_std = static_cast<T>(m.inverse_std);
      for (int64_t j = 0; j < D; ++j) y[j] = (x[j] - mean) * inverse_std * weight[j] + bias[j];
    }
  });
}

void layernorm(const Context& ctx, const LayernormArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) { normalize<decltype(zero)>(ctx, args); });
}

// One row, with z = (x − mean) / std and g = dy ⊙ weight: dx = (g − mean(g) − z · mean(g ⊙ z)) / std,
// dweight += dy ⊙ z, dbias += dy.
template <class T>
static inline void row_backward(const T* __restrict dy, const T* __restrict x, const T* __restrict weight, int64_t D,
                                double eps, T* __restrict dx, double* __restrict dweight, double* __restrict dbias) {
  const Moments m = moments(x, D, eps);
  const double count = static_cast<double>(D);
  if (dx) {
    const double mean_g = wide_dot(dy, weight, D) / count;
    const double mean_gz =
        wide_reduce<T>(D, [&](auto at) { return at(dy) * at(weight) * (at(x) - m.mean); }) * m.inverse_std / count;
    const T mean = static_cast<T>(m.mean), inverse_std = static_cast<T>(m.inverse_std);
    const T shift = static_cast<T>(mean_g), along = static_cast<T>(mean_gz * m.inverse_std);
    for (int64_t j = 0; j < D; ++j) dx[j] = (dy[j] * weight[j] - shift - (x[j] - mean) * along) * inverse_std;
  }
  if (dweight)
    for (int64_t j = 0; j < D; ++j)
      dweight[j] += static_cast<double>(dy[j]) * ((static_cast<double>(x[j]) - m.mean) * m.inverse_std);
  if (dbias)
    for (int64_t j = 0; j < D; ++j) dbias[j] += static_cast<double>(dy[j]);
}

template <class T>
static void normalize_backward(const Context& ctx, const LayernormBackwardArgs& args) {
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  const T* weight = static_cast<const T*>(args.weight);
  T *dx = static_cast<T*>(args.dx), *dweight = static_cast<T*>(args.dweight), *dbias = static_cast<T*>(args.dbias);
  const int64_t D = args.D, block = row_block(args.T), blocks = ceil_div(args.T, block);
  Scratch<double> weights(dweight ? blocks * D : 0), biases(dbias ? blocks * D : 0);
  parallel_blocks(ctx, args.T, block, [&](int64_t begin, int64_t end) {
    double* weight_sums = dweight ? weights.get() + begin / block * D : nullptr;
    double* bias_sums = dbias ? biases.get() + begin / block * D : nullptr;
    for (int64_t j = 0; weight_sums && j < D; ++j) weight_sums[j] = 0;
    for (int64_t j = 0; bias_sums && j < D; ++j) bias_sums[j] = 0;
    for (int64_t t = begin; t < end; ++t)
      row_backward(dy + t * D, x + t * D, weight, D, args.eps, dx ? dx + t * D : nullptr, weight_sums, bias_sums);
  });
  if (dweight) add_partials(weights.get(), blocks, D, dweight);
  if (dbias) add_partials(biases.get(), blocks, D, dbias);
}

void layernorm_backward(const Context& ctx, const LayernormBackwardArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) { normalize_backward<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
