#include "core/ops/creation.h"
#include "core/convert.h"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

template <class T>
struct Fill {
  T* out;
  T value;
  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    Vector<T, N> values;
    for (int c = 0; c < N; ++c) values[c] = value;
    store(out + i, values);
  }
};

void full(const Context& ctx, const FullArgs& args) {
  dispatch_rounded(args.dtype, args.value, [&](auto value) {
    using T = decltype(value);
    const Fill<T> f{static_cast<T*>(args.out), value};
    for_vectors<vector_width<T>>(ctx, args.size, aligned(f.out), f);
  });
}

}  // namespace st_moe::cuda
