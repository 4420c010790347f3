#include <cmath>

#include "core/ops/layers.h"
#include "core/rmsnorm.h"
#include "cuda/columns.cuh"
#include "cuda/row_lanes.cuh"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

// ‖x‖ and <x, u> of a row by its lanes: add(s, squares, products) adds those of s · x. If the squares overflow or are
// so small that they may be lost, they are added again with another power of two s.
template <class T>
struct RowSums {
  double norm, inner;

  template <class Lanes, class Add>
  __device__ RowSums(Lanes lanes, Add add) {
    T s = 1;
    for (;;) {
      LaneSum<T> squares, products;
      add(s, squares, products);
      const double square = lanes.sum(squares.total());
      norm = std::sqrt(square) / s, inner = lanes.sum(products.total()) / s;
      if (s != T(1) || (square > 1e-24 && square < INFINITY)) return;
      s = square > 1 ? T(0x1p-80) : T(0x1p80);
    }
  }
};

template <class T, int N>
struct RmsnormRow {
  const T *x, *gamma;  // [T, D], [D]
  T* y;                // [T, D]
  int64_t D;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    const T* row = x + t * D;
    const RowSums<T> sums(lanes, [&](T s, LaneSum<T>& squares, LaneSum<T>&) {
      for (int64_t j = lanes.lane() * N; j < D; j += Lanes::size * N) {
        const Vector<T, N> values = load<N>(row + j);
        T part = 0;
        for (int c = 0; c < N; ++c) part += (s * values[c]) * (s * values[c]);
        squares.add(part);
      }
    });
    const T factor = static_cast<T>(rms_factor(sums.norm, D));
    write_row<N>(y + t * D, D, lanes, [&](int64_t j) {
      Vector<T, N> values = load<N>(row + j);
      const Vector<T, N> scale = load<N>(gamma + j);
      for (int c = 0; c < N; ++c) values[c] = values[c] * factor * scale[c];
      return values;
    });
  }
};

void rmsnorm(const Context& ctx, const RmsnormArgs& args) {
  if (args.D == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *x = static_cast<const T*>(args.x), *gamma = static_cast<const T*>(args.gamma);
    T* y = static_cast<T*>(args.y);
    dispatch_width<vector_width<T>>(args.D, aligned(x, gamma, y), [&](auto n) {
      for_rows(ctx, args.T, args.D, RmsnormRow<T, n>{x, gamma, y, args.D});
    });
  });
}

// dx = addend + the gradient of the row.
template <class T, int N>
struct RmsnormBackwardRow {
  const T *dy, *x, *gamma, *addend;  // addend or null
  T* dx;                             // or null
  T* factor;                         // [T]: √D / max(r, 1e-12), for dgamma; or null
  int64_t D;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    const T *dy_row = dy + t * D, *row = x + t * D;
    const RowSums<T> sums(lanes, [&](T s, LaneSum<T>& squares, LaneSum<T>& products) {
#pragma unroll 2
      for (int64_t j = lanes.lane() * N; j < D; j += Lanes::size * N) {
        const Vector<T, N> values = load<N>(row + j), scale = load<N>(gamma + j), d = load<N>(dy_row + j);
        T square = 0, product = 0;
        for (int c = 0; c < N; ++c) {
          const T value = s * values[c];
          square += value * value, product += scale[c] * d[c] * value;
        }
        squares.add(square), products.add(product);
      }
    });
    if (factor && lanes.lane() == 0) factor[t] = static_cast<T>(rms_factor(sums.norm, D));
    if (!dx) return;
    const RmsnormGradient<T> gradient(sums.norm, sums.inner, D);
    write_row<N, 2>(dx + t * D, D, lanes, [&](int64_t j) {
      const Vector<T, N> values = load<N>(row + j), scale = load<N>(gamma + j);
      Vector<T, N> d = load<N>(dy_row + j);
      const Vector<T, N> more = addend ? load<N>(addend + t * D + j) : Vector<T, N>{};
      for (int c = 0; c < N; ++c) d[c] = more[c] + gradient.of(scale[c], d[c], values[c]);
      return d;
    });
  }
};

template <class T>
struct GammaTerm {
  const T *dy, *x, *factor;  // factor [T]
  int64_t D;

  __device__ ColumnTerms<T, 1> operator()(int64_t t, int64_t j) const {
    return {{factor[t] * x[t * D + j] * dy[t * D + j]}};
  }
};

template <class T>
static void normalize_backward(const Context& ctx, const RmsnormBackwardArgs& args) {
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  const T *gamma = static_cast<const T*>(args.gamma), *addend = static_cast<const T*>(args.dx_addend);
  T* dx = static_cast<T*>(args.dx);
  const Scratch<T> factor(ctx, args.dgamma ? args.T : 0);
  dispatch_width<vector_width<T>>(args.D, aligned(dy, x, gamma, addend, dx), [&](auto n) {
    const RmsnormBackwardRow<T, n> row{dy, x, gamma, addend, dx, factor.get(), args.D};
    if (!args.dgamma) return for_rows(ctx, args.T, args.D, row);
    sum_columns_of_rows(ctx, args.T, args.D, row, GammaTerm<T>{dy, x, factor.get(), args.D},
                        ColumnSums<T, 1>{{static_cast<T*>(args.dgamma)}});
  });
}

void rmsnorm_backward(const Context& ctx, const RmsnormBackwardArgs& args) {
  if (args.D == 0 || (!args.dx && !args.dgamma)) return;
  dispatch_float(args.dtype, [&](auto zero) { normalize_backward<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
