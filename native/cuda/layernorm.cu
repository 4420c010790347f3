#include <cmath>

#include "cuda/columns.cuh"
#include "cuda/ops.h"
#include "cuda/row_group.cuh"

namespace st_moe::cuda {

struct Moments {
  double mean, inverse_std;
};

// Two passes: squares of centered values do not cancel.
template <class T, class Group>
__device__ static inline Moments moments(const T* x, int64_t D, double eps, Group group) {
  double sum = 0;
  for (int64_t j = group.lane(); j < D; j += Group::size) sum += static_cast<double>(x[j]);
  const double mean = group.sum(sum) / static_cast<double>(D);
  double squares = 0;
  for (int64_t j = group.lane(); j < D; j += Group::size) {
    const double centred = static_cast<double>(x[j]) - mean;
    squares += centred * centred;
  }
  return {mean, 1.0 / std::sqrt(group.sum(squares) / static_cast<double>(D) + eps)};
}

template <class T>
struct LayernormRow {
  const T *x, *weight, *bias;  // [T, D], [D], [D]
  T* y;                        // [T, D]
  int64_t D;
  double eps;

  template <class Group>
  __device__ void operator()(int64_t t, Group group) const {
    const T* row = x + t * D;
    const Moments m = moments(row, D, eps, group);
    const T mean = static_cast<T>(m.mean), inverse_std = static_cast<T>(m.inverse_std);
    for (int64_t j = group.lane(); j < D; j += Group::size)
      y[t * D + j] = (row[j] - mean) * inverse_std * weight[j] + bias[j];
  }
};

void layernorm(const Context& ctx, const LayernormArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const LayernormRow<T> row{static_cast<const T*>(args.x),
                              static_cast<const T*>(args.weight),
                              static_cast<const T*>(args.bias),
                              static_cast<T*>(args.y),
                              args.D,
                              args.eps};
    for_rows(ctx, args.T, args.D, row);
  });
}

// With z = (x − mean) / std and g = dy ⊙ weight: dx = (g − mean(g) − z · mean(g ⊙ z)) / std.
template <class T>
struct LayernormBackwardRow {
  const T *dy, *x, *weight;
  T* dx;           // or null
  Moments* saved;  // [T], for dweight; or null
  int64_t D;
  double eps;

  template <class Group>
  __device__ void operator()(int64_t t, Group group) const {
    const T *dy_row = dy + t * D, *row = x + t * D;
    const Moments m = moments(row, D, eps, group);
    if (saved && group.lane() == 0) saved[t] = m;
    if (!dx) return;
    double g = 0, gz = 0;
    for (int64_t j = group.lane(); j < D; j += Group::size) {
      const double term = static_cast<double>(dy_row[j]) * static_cast<double>(weight[j]);
      g += term;
      gz += term * (static_cast<double>(row[j]) - m.mean);
    }
    const double count = static_cast<double>(D), mean_g = group.sum(g) / count;
    const double mean_gz = group.sum(gz) * m.inverse_std / count;
    const T mean = static_cast<T>(m.mean), inverse_std = static_cast<T>(m.inverse_std);
    const T shift = static_cast<T>(mean_g), along = static_cast<T>(mean_gz * m.inverse_std);
    for (int64_t j = group.lane(); j < D; j += Group::size)
      dx[t * D + j] = (dy_row[j] * weight[j] - shift - (row[j] - mean) * along) * inverse_std;
  }
};

template <class T>
struct WeightAndBiasTerm {
  const T *dy, *x;
  const Moments* saved;  // [T], or null: no dweight
  int64_t D;

  __device__ ColumnTerms<2> operator()(int64_t t, int64_t j) const {
    const double g = static_cast<double>(dy[t * D + j]);
    if (!saved) return {{0.0, g}};
    return {{g * ((static_cast<double>(x[t * D + j]) - saved[t].mean) * saved[t].inverse_std), g}};
  }
};

template <class T>
static void normalize_backward(const Context& ctx, const LayernormBackwardArgs& args) {
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  const Scratch<Moments> saved(ctx, args.dweight ? args.T : 0);
  if (args.dx || args.dweight) {
    const LayernormBackwardRow<T> row{
        dy, x, static_cast<const T*>(args.weight), static_cast<T*>(args.dx), saved.get(), args.D, args.eps};
    for_rows(ctx, args.T, args.D, row);
  }
  if (args.dweight || args.dbias) {
    sum_columns(ctx, 1, args.T, args.D, WeightAndBiasTerm<T>{dy, x, saved.get(), args.D},
                ColumnSums<T, 2>{{static_cast<T*>(args.dweight), static_cast<T*>(args.dbias)}});
  }
}

void layernorm_backward(const Context& ctx, const LayernormBackwardArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) { normalize_backward<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
