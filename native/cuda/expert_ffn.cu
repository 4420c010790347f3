#include "cuda/ops.h"

#include "core/formulas.h"
#include "cuda/expert_rows.cuh"

namespace st_moe::cuda {

// Element of the hidden layer. a [rows, 2H] enters as x W1ᵀ and leaves as A = [a ; γ]; h [rows, H] = gelu(γ) ⊙ a ⊙ μ.
template <class T>
struct Activate {
  T* a;
  const T *b1, *mult_bias;  // [E, 2H], [E, H]
  T* h;
  int64_t H, rows_each;

  __device__ void operator()(int64_t i) const {
    const Place place = place_of(i, H);
    const int64_t expert = place_of(place.row, rows_each).row;
    T *value = a + place.row * 2 * H + place.column, *gate = value + H;
    const T* bias = b1 + expert * 2 * H + place.column;
    const T v = *value + bias[0], z = *gate + bias[H];
    *value = v;
    *gate = z;
    h[i] = gelu(z) * v * mult_bias[expert * H + place.column];
  }
};

template <class T>
static void forward(const Context& ctx, const ExpertFfnArgs& args, const ExpertRows& rows) {
  const int64_t D = args.D, H = args.H, M = rows.each, count = rows.count();
  const bool gathers = rows.slots;
  const T *x = static_cast<const T*>(args.x), *weight = static_cast<const T*>(args.weight);
  T* y = static_cast<T*>(args.y);
  Scratch<int32_t> holder(ctx, gathers ? count : 0);
  Scratch<T> gathered(ctx, gathers ? count * D : 0);  // x of the rows, then their outputs
  Scratch<T> unsaved(ctx, args.a ? 0 : count * 2 * H), h(ctx, count * H);
  T *a = args.a ? static_cast<T*>(args.a) : unsaved.get(), *out = gathers ? gathered.get() : y;

  if (gathers) {
    fill_holders(ctx, rows.assignments, holder.get());
    elementwise(ctx, count * D, GatherRows<T>{holder.get(), x, nullptr, gathered.get(), D, args.K});
  }
  if (count > 0) {
    multiply(ctx, args.dtype, rows.of_rows(gathers ? gathered.get() : x, args.w1, a, 2 * H, D, true));
    elementwise(ctx, count * H,
                Activate<T>{a, static_cast<const T*>(args.b1), static_cast<const T*>(args.mult_bias), h.get(), H, M});
    multiply(ctx, args.dtype, rows.of_rows(h.get(), args.w2, out, D, H, true));
  }
  elementwise(ctx, args.T * D, CombineRows<T>{rows.assignments, out, weight, static_cast<const T*>(args.b2), y, D});
}

void expert_ffn(const Context& ctx, const ExpertFfnArgs& args) {
  const ExpertRows rows = expert_rows_of(ctx, args);
  if (args.compute != args.dtype) fail(ErrorCode::unsupported, "compute dtype %s", dtype_name(args.compute));
  dispatch_float(args.dtype, [&](auto zero) { forward<decltype(zero)>(ctx, args, rows); });
}

}  // namespace st_moe::cuda
