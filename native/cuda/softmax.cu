#include <cmath>

#include "core/formulas.h"
#include "cuda/ops.h"
#include "cuda/row_group.cuh"

namespace st_moe::cuda {

template <class T>
struct SoftmaxRow {
  const T* x;  // [T, V]
  T* y;        // [T, V]
  int64_t V;
  bool log;

  template <class Group>
  __device__ void operator()(int64_t t, Group group) const {
    const T* from = x + t * V;
    T* to = y + t * V;
    T largest = -static_cast<T>(INFINITY);
    for (int64_t j = group.lane(); j < V; j += Group::size) largest = Max{}(largest, from[j]);
    largest = group.max(largest);
    double sum = 0;
    for (int64_t j = group.lane(); j < V; j += Group::size) {
      const T shifted = from[j] - largest, e = exp_of(shifted);
      to[j] = log ? shifted : e;
      sum += static_cast<double>(e);
    }
    sum = group.sum(sum);
    if (log) {
      const T lse = static_cast<T>(std::log(sum));
      for (int64_t j = group.lane(); j < V; j += Group::size) to[j] -= lse;
    } else {
      const T factor = static_cast<T>(1.0 / sum);
      for (int64_t j = group.lane(); j < V; j += Group::size) to[j] *= factor;
    }
  }
};

void softmax(const Context& ctx, const SoftmaxArgs& args) {
  if (args.V == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const SoftmaxRow<T> row{static_cast<const T*>(args.x), static_cast<T*>(args.y), args.V, args.log != 0};
    for_rows(ctx, args.T, args.V, row);
  });
}

// dx = y ⊙ (dy − <y, dy>); log: dx = dy − e^y · Σ dy
template <class T>
struct SoftmaxBackwardRow {
  const T *dy, *y;
  T* dx;
  int64_t V;
  bool log;

  template <class Group>
  __device__ void operator()(int64_t t, Group group) const {
    const T *dy_row = dy + t * V, *y_row = y + t * V;
    double sum = 0;
    for (int64_t j = group.lane(); j < V; j += Group::size)
      sum += static_cast<double>(dy_row[j]) * (log ? 1.0 : static_cast<double>(y_row[j]));
    const T total = static_cast<T>(group.sum(sum));
    for (int64_t j = group.lane(); j < V; j += Group::size)
      dx[t * V + j] = log ? dy_row[j] - exp_of(y_row[j]) * total : y_row[j] * (dy_row[j] - total);
  }
};

void softmax_backward(const Context& ctx, const SoftmaxBackwardArgs& args) {
  if (args.V == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const SoftmaxBackwardRow<T> row{static_cast<const T*>(args.dy), static_cast<const T*>(args.y),
                                    static_cast<T*>(args.dx), args.V, args.log != 0};
    for_rows(ctx, args.T, args.V, row);
  });
}

}  // namespace st_moe::cuda
