#include <cmath>

#include "cuda/columns.cuh"
#include "cuda/ops.h"
#include "cuda/row_group.cuh"

namespace st_moe::cuda {

constexpr double kNormFloor = 1e-12;

__device__ static inline double floor_norm(double norm) {
  return norm < kNormFloor ? kNormFloor : norm;
}

template <class T>
struct RmsnormRow {
  const T *x, *gamma;  // [T, D], [D]
  T* y;                // [T, D]
  int64_t D;

  template <class Group>
  __device__ void operator()(int64_t t, Group group) const {
    const T* row = x + t * D;
    double squares = 0;
    for (int64_t j = group.lane(); j < D; j += Group::size) squares += static_cast<double>(row[j]) * row[j];
    const double norm = std::sqrt(group.sum(squares));
    const T factor = static_cast<T>(std::sqrt(static_cast<double>(D)) / floor_norm(norm));
    for (int64_t j = group.lane(); j < D; j += Group::size) y[t * D + j] = row[j] * factor * gamma[j];
  }
};

void rmsnorm(const Context& ctx, const RmsnormArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const RmsnormRow<T> row{static_cast<const T*>(args.x), static_cast<const T*>(args.gamma), static_cast<T*>(args.y),
                            args.D};
    for_rows(ctx, args.T, args.D, row);
  });
}

// With u = gamma √D dy and r = ‖x‖: dx = (u − x <x, u> / r²) / r; 0 below the lower bound of r.
template <class T>
struct RmsnormBackwardRow {
  const T *dy, *x, *gamma;
  T* dx;           // or null
  double* factor;  // [T]: √D / max(r, 1e-12), for dgamma; or null
  int64_t D;

  template <class Group>
  __device__ void operator()(int64_t t, Group group) const {
    const T *dy_row = dy + t * D, *row = x + t * D;
    double squares = 0, inner = 0;
    for (int64_t j = group.lane(); j < D; j += Group::size) {
      const double value = static_cast<double>(row[j]);
      squares += value * value;
      inner += static_cast<double>(gamma[j]) * dy_row[j] * value;
    }
    const double root = std::sqrt(static_cast<double>(D)), norm = std::sqrt(group.sum(squares));
    if (factor && group.lane() == 0) factor[t] = root / floor_norm(norm);
    if (!dx) return;
    const bool floored = norm < kNormFloor;
    inner = root * group.sum(inner);
    const T direct = static_cast<T>(root / norm), along = static_cast<T>(inner / norm / norm / norm);
    for (int64_t j = group.lane(); j < D; j += Group::size)
      dx[t * D + j] = floored ? T(0) : direct * gamma[j] * dy_row[j] - along * row[j];
  }
};

template <class T>
struct GammaTerm {
  const T *dy, *x;
  const double* factor;  // [T]
  int64_t D;

  __device__ ColumnTerms<1> operator()(int64_t t, int64_t j) const {
    return {{factor[t] * static_cast<double>(x[t * D + j]) * static_cast<double>(dy[t * D + j])}};
  }
};

template <class T>
static void normalize_backward(const Context& ctx, const RmsnormBackwardArgs& args) {
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  const Scratch<double> factor(ctx, args.dgamma ? args.T : 0);
  const RmsnormBackwardRow<T> row{dy,           x,     static_cast<const T*>(args.gamma), static_cast<T*>(args.dx),
                                  factor.get(), args.D};
  for_rows(ctx, args.T, args.D, row);
  if (args.dgamma) {
    sum_columns(ctx, 1, args.T, args.D, GammaTerm<T>{dy, x, factor.get(), args.D},
                ColumnSums<T, 1>{{static_cast<T*>(args.dgamma)}});
  }
}

void rmsnorm_backward(const Context& ctx, const RmsnormBackwardArgs& args) {
  if (args.D == 0 || (!args.dx && !args.dgamma)) return;
  dispatch_float(args.dtype, [&](auto zero) { normalize_backward<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
