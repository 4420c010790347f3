#include <cmath>

#include "core/ops/layers.h"
#include "core/formulas.h"
#include "cuda/row_lanes.cuh"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

template <class T, int N>
struct SoftmaxRow {
  const T* x;  // [T, V]
  T* y;        // [T, V]
  int64_t V;
  bool log;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    const T* from = x + t * V;
    T* to = y + t * V;
    T largest = -static_cast<T>(INFINITY);
    for (int64_t j = lanes.lane() * N; j < V; j += Lanes::size * N) {
      const Vector<T, N> values = load<N>(from + j);
      for (int c = 0; c < N; ++c) largest = Max{}(largest, values[c]);
    }
    largest = lanes.max(largest);
    LaneSum<T> mine;
    constexpr int kAtOnce = N >= 4 ? 4 : 1;  // exp of doubles takes many registers
    write_row<N, kAtOnce>(to, V, lanes, [&](int64_t j) {
      Vector<T, N> values = load<N>(from + j);
      T part = 0;
      for (int c = 0; c < N; ++c) {
        const T shifted = values[c] - largest, e = exp_of(shifted);
        values[c] = log ? shifted : e;
        part += e;
      }
      mine.add(part);
      return values;
    });
    const double sum = lanes.sum(mine.total());
    const T lse = static_cast<T>(std::log(sum)), factor = static_cast<T>(1.0 / sum);
    write_row<N>(to, V, lanes, [&](int64_t j) {
      Vector<T, N> values = load<N>(to + j);
      for (int c = 0; c < N; ++c) values[c] = log ? values[c] - lse : values[c] * factor;
      return values;
    });
  }
};

void softmax(const Context& ctx, const SoftmaxArgs& args) {
  if (args.V == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    T* y = static_cast<T*>(args.y);
    dispatch_width<vector_width<T>>(args.V, aligned(x, y), [&](auto n) {
      for_rows(ctx, args.T, args.V, SoftmaxRow<T, n>{x, y, args.V, args.log != 0});
    });
  });
}

// dx = y ⊙ (dy − <y, dy>); log: dx = dy − e^y · Σ dy
template <class T, int N>
struct SoftmaxBackwardRow {
  const T *dy, *y;
  T* dx;
  int64_t V;
  bool log;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    const T *dy_row = dy + t * V, *y_row = y + t * V;
    LaneSum<T> sum;
    for (int64_t j = lanes.lane() * N; j < V; j += Lanes::size * N) {
      const Vector<T, N> d = load<N>(dy_row + j), value = load<N>(y_row + j);
      T part = 0;
      for (int c = 0; c < N; ++c) part += log ? d[c] : d[c] * value[c];
      sum.add(part);
    }
    const T total = static_cast<T>(lanes.sum(sum.total()));
    write_row<N, 2>(dx + t * V, V, lanes, [&](int64_t j) {
      Vector<T, N> d = load<N>(dy_row + j);
      const Vector<T, N> value = load<N>(y_row + j);
      for (int c = 0; c < N; ++c) d[c] = log ? d[c] - exp_of(value[c]) * total : value[c] * (d[c] - total);
      return d;
    });
  }
};

void softmax_backward(const Context& ctx, const SoftmaxBackwardArgs& args) {
  if (args.V == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *dy = static_cast<const T*>(args.dy), *y = static_cast<const T*>(args.y);
    T* dx = static_cast<T*>(args.dx);
    dispatch_width<vector_width<T>>(args.V, aligned(dy, y, dx), [&](auto n) {
      for_rows(ctx, args.T, args.V, SoftmaxBackwardRow<T, n>{dy, y, dx, args.V, args.log != 0});
    });
  });
}

}  // namespace st_moe::cuda
