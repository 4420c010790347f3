#include "core/ops/reductions.h"
#include "core/clip.h"

#include "cuda/batch.cuh"

namespace st_moe::cuda {

template <class T>
struct Clipped {
  T* x;
  const double* norm;
  int64_t size;
  bool aligned;
  double max;
};

template <class T>
__global__ void __launch_bounds__(kBlock) clip_norm_kernel(const __grid_constant__ Items<Clipped<T>> items) {
  items.for_chunks([&](const Clipped<T>& clipped, int64_t, int64_t begin, int64_t end) {
    const T factor = static_cast<T>(clip_factor(*clipped.norm, clipped.max));
    if (factor == T(1)) return;
    for_elements<vector_width<T>>(begin, end, clipped.aligned, [&](auto width, int64_t i) {
      constexpr int N = decltype(width)::value;
      Vector<T, N> values = load<N>(clipped.x + i);
      for (int c = 0; c < N; ++c) values[c] *= factor;
      store(clipped.x + i, values);
    });
  });
}

template <class T>
static void clip_all(const Context& ctx, const Batch<ClipNormArgs>& batch) {
  const auto clipped_of = [](const ClipNormArgs& args) {
    T* const x = static_cast<T*>(args.x);
    return Clipped<T>{x, static_cast<const double*>(args.norm), args.size, aligned(x), args.max};
  };
  in_parts<T>(batch, clipped_of, [&](const auto& items) {
    launch(ctx, clip_norm_kernel<T>, grid_for(items.chunks(), 1), kBlock, 0, items);
  });
}

void clip_norm(const Context& ctx, const Batch<ClipNormArgs>& batch) {
  clip_all<float>(ctx, batch);
  clip_all<double>(ctx, batch);
}

}  // namespace st_moe::cuda
