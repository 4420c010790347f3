#include "core/ops/layers.h"
#include "cpu/logsumexp.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
double logsumexp(const T* x, int64_t n) {
  constexpr int64_t chunk = 512;
  const T largest = row_max(x, n);
  double sum = 0;
  T e[chunk];
  for (int64_t first = 0; first < n; first += chunk) {
    const int64_t count = min_of(chunk, n - first);
    for (int64_t j = 0; j < count; ++j) e[j] = exp_of(x[first + j] - largest);
    sum += wide_sum(e, count);
  }
  return static_cast<double>(largest) + std::log(sum);
}
template double logsumexp(const float*, int64_t);
template double logsumexp(const double*, int64_t);

template <class T>
void softmax_row(const T* x, T* y, int64_t V) {
  const T largest = row_max(x, V);
  for (int64_t j = 0; j < V; ++j) y[j] = exp_of(x[j] - largest);
  const T factor = static_cast<T>(1.0 / wide_sum(y, V));
  for (int64_t j = 0; j < V; ++j) y[j] *= factor;
}
template void softmax_row(const float*, float*, int64_t);
template void softmax_row(const double*, double*, int64_t);

template <class T>
static inline void log_softmax_row(const T* __restrict x, T* __restrict y, int64_t V) {
  const T largest = row_max(x, V);
  // Subtracts the maximum first: lse of the shifted row is in [0, log V], so large logits lose no precision.
  for (int64_t j = 0; j < V; ++j) y[j] = x[j] - largest;
  const T lse = static_cast<T>(logsumexp(y, V));
  for (int64_t j = 0; j < V; ++j) y[j] -= lse;
}

void softmax(const Context& ctx, const SoftmaxArgs& args) {
  if (args.V == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    T* y = static_cast<T*>(args.y);
    parallel_blocks(ctx, args.T, max_of<int64_t>(1, kElementBlock / args.V), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        if (args.log) {
          log_softmax_row(x + t * args.V, y + t * args.V, args.V);
        } else {
          softmax_row(x + t * args.V, y + t * args.V, args.V);
        }
      }
    });
  });
}

// dx = y ⊙ (dy − <y, dy>); log: dx = dy − e^y · Σ dy
template <class T>
static inline void row_backward(const T* __restrict dy, const T* __restrict y, T* __restrict dx, int64_t V, bool log) {
  if (log) {
    const T total = static_cast<T>(wide_sum(dy, V));
    for (int64_t j = 0; j < V; ++j) dx[j] = dy[j] - exp_of(y[j]) * total;
  } else {
    const T mean = static_cast<T>(wide_dot(y, dy, V));
    for (int64_t j = 0; j < V; ++j) dx[j] = y[j] * (dy[j] - mean);
  }
}

void softmax_backward(const Context& ctx, const SoftmaxBackwardArgs& args) {
  if (args.V == 0) return;
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *dy = static_cast<const T*>(args.dy), *y = static_cast<const T*>(args.y);
    T* dx = static_cast<T*>(args.dx);
    parallel_blocks(ctx, args.T, max_of<int64_t>(1, kElementBlock / args.V), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        row_backward(dy + t * args.V, y + t * args.V, dx + t * args.V, args.V, args.log != 0);
    });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
