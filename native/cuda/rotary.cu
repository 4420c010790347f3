#include <cmath>

#include "core/ops/attention.h"
#include "core/formulas.h"
#include "cuda/rows.cuh"

namespace st_moe::cuda {

// Pair i of token n, of every head and sequence: one angle for all of them, or for all heads of a sequence.
template <class T>
struct RotatePair {
  const T* x;
  const int32_t* position;
  T* y;
  int64_t sequences, N, heads, d;
  double base, sign;

  __device__ void operator()(int64_t at) const {
    const int64_t half = d / 2;
    const MatrixIndex place = matrix_index(at, half);
    const int64_t n = place.row, i = place.column;
    T cosine{}, sine{};
    for (int64_t t = 0; t < sequences; ++t) {
      if (t == 0 || position) {
        const double angle = rotary_angle(position ? position[t] + n : n, i, d, base);
        cosine = static_cast<T>(cos(angle));
        sine = static_cast<T>(sign * sin(angle));
      }
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t from = ((t * N + n) * heads + head) * d + i;
        const T a = x[from], b = x[from + half];
        y[from] = a * cosine - b * sine;
        y[from + half] = b * cosine + a * sine;
      }
    }
  }
};

void rotary(const Context& ctx, const RotaryArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    elementwise(
        ctx, args.N * (args.d / 2),
        RotatePair<T>{static_cast<const T*>(args.x), static_cast<const int32_t*>(args.position),
                      static_cast<T*>(args.y), args.T, args.N, args.heads, args.d, args.base, args.back ? -1.0 : 1.0});
  });
}

}  // namespace st_moe::cuda
