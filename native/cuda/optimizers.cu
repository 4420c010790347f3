#include "core/optimizers.h"

#include "cuda/batch.cuh"
#include "cuda/ops.h"
#include "cuda/per_step.cuh"

namespace st_moe::cuda {

template <class Update, class T>
struct Target {
  T* p;
  const T* g;
  T* state[Update::kState];  // or null
  int64_t size;
  bool aligned;
  Factors<T> factors;

  template <int N>
  __device__ void update(const T* f, int64_t i) const {
    Vector<T, N> values = load<N>(p + i), states[Update::kState]{};
    const Vector<T, N> gradients = load<N>(g + i);
    for (int k = 0; k < Update::kState; ++k)
      if (state[k]) states[k] = load<N>(state[k] + i);
    for (int c = 0; c < N; ++c) {
      T own[Update::kState];
      for (int k = 0; k < Update::kState; ++k) own[k] = states[k][c];
      Update::apply(f, values[c], gradients[c], own);
      for (int k = 0; k < Update::kState; ++k) states[k][c] = own[k];
    }
    store(p + i, values);
    for (int k = 0; k < Update::kState; ++k)
      if (state[k]) store(state[k] + i, states[k]);
  }
};

template <class Update, class T>
__global__ void __launch_bounds__(kBlock) update_kernel(const __grid_constant__ Items<Target<Update, T>> items) {
  items.for_chunks([&](const Target<Update, T>& target, int64_t, int64_t begin, int64_t end) {
    T f[kFactors];
    for (int i = 0; i < kFactors; ++i) f[i] = target.factors[i];
    for_elements<vector_width<T>>(begin, end, target.aligned,
                                  [&](auto width, int64_t i) { target.template update<decltype(width)::value>(f, i); });
  });
}

template <class Update, class T, class Args>
static void update_all(const Context& ctx, const Batch<Args>& batch) {
  const auto target_of = [&](const Args& args) {
    Target<Update, T> target;
    target.p = static_cast<T*>(args.p);
    target.g = static_cast<const T*>(args.g);
    target.size = args.size;
    target.aligned = aligned(target.p, target.g);
    target.factors = Factors<T>(ctx, args.step, factors_of(args));
    for (int k = 0; k < Update::kState; ++k) {
      target.state[k] = static_cast<T*>(Update::state(args, k));
      target.aligned = target.aligned && aligned(target.state[k]);
    }
    return target;
  };
  in_parts<T>(batch, target_of, [&](const auto& items) {
    launch(ctx, update_kernel<Update, T>, grid_for(items.chunks(), 1), kBlock, 0, items);
  });
}

#define ST_MOE_UPDATE(Name, name)                                 \
  void name(const Context& ctx, const Batch<Name##Args>& batch) { \
    update_all<Name##Update, float>(ctx, batch);                  \
    update_all<Name##Update, double>(ctx, batch);                 \
  }
ST_MOE_OPTIMIZERS(ST_MOE_UPDATE)

}  // namespace st_moe::cuda
