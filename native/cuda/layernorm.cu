#include <cmath>

#include "core/ops/layers.h"
#include "cuda/columns.cuh"
#include "cuda/row_lanes.cuh"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

struct Moments {
  double mean, inverse_std;
};

// Two passes: squares of centered values do not cancel.
template <int N, class T, class Lanes>
__device__ static inline Moments moments(const T* x, int64_t D, double eps, Lanes lanes) {
  LaneSum<T> sum, squares;
  for (int64_t j = lanes.lane() * N; j < D; j += Lanes::size * N) {
    const Vector<T, N> values = load<N>(x + j);
    T part = 0;
    for (int c = 0; c < N; ++c) part += values[c];
    sum.add(part);
  }
  const double mean = lanes.sum(sum.total()) / static_cast<double>(D);
  const T center = static_cast<T>(mean);
  for (int64_t j = lanes.lane() * N; j < D; j += Lanes::size * N) {
    const Vector<T, N> values = load<N>(x + j);
    T part = 0;
    for (int c = 0; c < N; ++c) part += (values[c] - center) * (values[c] - center);
    squares.add(part);
  }
  return {mean, 1.0 / std::sqrt(lanes.sum(squares.total()) / static_cast<double>(D) + eps)};
}

template <class T, int N>
struct LayernormRow {
  const T *x, *weight, *bias;  // [T, D], [D], [D]
  T* y;                        // [T, D]
  int64_t D;
  double eps;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    const T* row = x + t * D;
    const Moments m = moments<N>(row, D, eps, lanes);
    const T mean = static_cast<T>(m.mean), inverse_std = static_cast<T>(m.inverse_std);
    write_row<N>(y + t * D, D, lanes, [&](int64_t j) {
      Vector<T, N> values = load<N>(row + j);
      const Vector<T, N> scale = load<N>(weight + j), shift = load<N>(bias + j);
      for (int c = 0; c < N; ++c) values[c] = (values[c] - mean) * inverse_std * scale[c] + shift[c];
      return values;
    });
  }
};

void layernorm(const Context& ctx, const LayernormArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *x = static_cast<const T*>(args.x), *weight = static_cast<const T*>(args.weight);
    const T* bias = static_cast<const T*>(args.bias);
    T* y = static_cast<T*>(args.y);
    dispatch_width<vector_width<T>>(args.D, aligned(x, weight, bias, y), [&](auto n) {
      for_rows(ctx, args.T, args.D, LayernormRow<T, n>{x, weight, bias, y, args.D, args.eps});
    });
  });
}

// With z = (x − mean) / std and g = dy ⊙ weight: dx = (g − mean(g) − z · mean(g ⊙ z)) / std.
template <class T, int N>
struct LayernormBackwardRow {
  const T *dy, *x, *weight;
  T* dx;           // or null
  Moments* saved;  // [T], for dweight; or null
  int64_t D;
  double eps;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    const T *dy_row = dy + t * D, *row = x + t * D;
    const Moments m = moments<N>(row, D, eps, lanes);
    if (saved && lanes.lane() == 0) saved[t] = m;
    if (!dx) return;
    const T mean = static_cast<T>(m.mean), inverse_std = static_cast<T>(m.inverse_std);
    LaneSum<T> g, gz;
#pragma unroll 2
    for (int64_t j = lanes.lane() * N; j < D; j += Lanes::size * N) {
      const Vector<T, N> values = load<N>(row + j), scale = load<N>(weight + j), d = load<N>(dy_row + j);
      T part = 0, centered = 0;
      for (int c = 0; c < N; ++c) part += d[c] * scale[c], centered += d[c] * scale[c] * (values[c] - mean);
      g.add(part), gz.add(centered);
    }
    const double count = static_cast<double>(D), mean_g = lanes.sum(g.total()) / count;
    const double mean_gz = lanes.sum(gz.total()) * m.inverse_std / count;
    const T shift = static_cast<T>(mean_g), along = static_cast<T>(mean_gz * m.inverse_std);
    write_row<N, 2>(dx + t * D, D, lanes, [&](int64_t j) {
      const Vector<T, N> values = load<N>(row + j), scale = load<N>(weight + j);
      Vector<T, N> d = load<N>(dy_row + j);
      for (int c = 0; c < N; ++c) d[c] = (d[c] * scale[c] - shift - (values[c] - mean) * along) * inverse_std;
      return d;
    });
  }
};

template <class T>
struct WeightAndBiasTerm {
  const T *dy, *x;
  const Moments* saved;  // [T]
  int64_t D;

  __device__ ColumnTerms<T, 2> operator()(int64_t t, int64_t j) const {
    const T g = dy[t * D + j];
    return {{g * ((x[t * D + j] - static_cast<T>(saved[t].mean)) * static_cast<T>(saved[t].inverse_std)), g}};
  }
};

template <class T>
static void normalize_backward(const Context& ctx, const LayernormBackwardArgs& args) {
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  const bool sums_columns = args.dweight || args.dbias;
  const Scratch<Moments> saved(ctx, sums_columns ? args.T : 0);
  const T* weight = static_cast<const T*>(args.weight);
  T *dx = static_cast<T*>(args.dx), *dweight = static_cast<T*>(args.dweight), *dbias = static_cast<T*>(args.dbias);
  if (!dx && !dweight) return sum_columns(ctx, 1, args.T, args.D, dy, dbias);
  dispatch_width<vector_width<T>>(args.D, aligned(dy, x, weight, dx), [&](auto n) {
    const LayernormBackwardRow<T, n> row{dy, x, weight, dx, saved.get(), args.D, args.eps};
    if (!sums_columns) return for_rows(ctx, args.T, args.D, row);
    sum_columns_of_rows(ctx, args.T, args.D, row, WeightAndBiasTerm<T>{dy, x, saved.get(), args.D},
                        ColumnSums<T, 2>{{dweight, dbias}});
  });
}

void layernorm_backward(const Context& ctx, const LayernormBackwardArgs& args) {
  if (args.D == 0 || (!args.dx && !args.dweight && !args.dbias)) return;
  dispatch_float(args.dtype, [&](auto zero) { normalize_backward<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
