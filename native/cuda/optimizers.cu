#include "core/optimizers.h"

#include "cuda/batch.cuh"
#include "cuda/operands.cuh"
#include "cuda/per_step.cuh"

namespace st_moe::cuda {

struct NoCopy {
  struct Place {};
  __device__ Place place(int64_t) const { return {}; }
  template <int N, class T>
  __device__ void write(Place, int64_t, const Vector<T, N>&) const {}
};

// Copy: KeptCopy or NoCopy.
template <class Update, class T, class Copy>
struct Target {
  T* p;
  const T* g;
  T* state[kStateSlots<Update>];  // or null
  int64_t size;
  bool aligned;
  Factors<T> factors;
  Copy copy;

  template <int N>
  __device__ void update(const T* f, int64_t i, int64_t begin, typename Copy::Place place) const {
    Vector<T, N> values = load<N>(p + i), states[kStateSlots<Update>]{};
    const Vector<T, N> gradients = load<N>(g + i);
    for (int k = 0; k < Update::kState; ++k)
      if (state[k]) states[k] = load<N>(state[k] + i);
    for (int c = 0; c < N; ++c) {
      T own[kStateSlots<Update>];
      for (int k = 0; k < Update::kState; ++k) own[k] = states[k][c];
      Update::apply(f, values[c], gradients[c], own);
      for (int k = 0; k < Update::kState; ++k) states[k][c] = own[k];
    }
    store(p + i, values);
    copy.template write<N>(place, i - begin, values);
    for (int k = 0; k < Update::kState; ++k)
      if (state[k]) store(state[k] + i, states[k]);
  }
};

template <class Update, class T, class Copy>
__global__ void __launch_bounds__(kBlock)
    update_kernel(const __grid_constant__ Items<Target<Update, T, Copy>> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const Target<Update, T, Copy>& target, int64_t, int64_t begin, int64_t end) {
    T f[kFactors];
    for (int i = 0; i < kFactors; ++i) f[i] = target.factors[i];
    const auto place = target.copy.place(begin);
    for_elements<vector_width<T>>(begin, end, target.aligned, [&](auto width, int64_t i) {
      target.template update<decltype(width)::value>(f, i, begin, place);
    });
  });
}

// The parameters of type T that have a kept copy, or those that have none.
template <class Update, class T, class Copy, class Args>
static void update_all(const Context& ctx, const Batch<Args>& batch, const double* norm) {
  constexpr bool copies = std::is_same_v<Copy, KeptCopy>;
  const auto copy_of = [](const Args& args) { return KeptCopy::of(operands_of(args).packed); };
  const auto target_of = [&](const Args& args) {
    Target<Update, T, Copy> target;
    const UpdateOperands operands = operands_of(args);
    target.p = static_cast<T*>(operands.p);
    target.g = static_cast<const T*>(operands.g);
    target.size = args.size;
    target.aligned = aligned(target.p, target.g);
    target.factors = Factors<T>(ctx, args.step, factors_of(args));
    for (int k = 0; k < Update::kState; ++k) {
      target.state[k] = static_cast<T*>(Update::state(args, k));
      target.aligned = target.aligned && aligned(target.state[k]);
    }
    if constexpr (copies) {
      target.copy = KeptCopy(*copy_of(args));
      target.aligned = target.aligned && target.copy.has_vectors(vector_width<T>);
    }
    return target;
  };
  in_parts<T>(
      batch, target_of,
      [&](const auto& items) {
        launch(ctx, update_kernel<Update, T, Copy>, grid_for(items.chunks(), 1), kBlock, 0, items, norm);
      },
      [&](const Args& args) { return copies == (copy_of(args) != nullptr); });
}

template <class Update, class Args>
static void update_batch(const Context& ctx, const Batch<Args>& batch) {
  by_norm(batch, [&](const Batch<Args>& part, const double* norm) {
    update_all<Update, float, NoCopy>(ctx, part, norm);
    update_all<Update, float, KeptCopy>(ctx, part, norm);
    update_all<Update, double, NoCopy>(ctx, part, norm);
  });
  for (int64_t i = 0; i < batch.count; ++i)
    if (PackedCopy* copy = KeptCopy::of(operands_of(batch.items[i]).packed)) copy->outdated = false;
}

#define FACTORS(Name, name, ...)                                  \
  void name(const Context& ctx, const Batch<Name##Args>& batch) { \
    update_batch<Name##Update>(ctx, batch);                       \
  }
#define ST_MOE_OPS "core/ops/optimizers.inc"
#include "core/op_list.inc"

}  // namespace st_moe::cuda
