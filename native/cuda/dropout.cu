#include "core/ops/elementwise.h"
#include "core/dropout.h"
#include "cuda/per_step.cuh"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

constexpr int kWords = 4;  // of a Philox block

template <class T>
struct Dropout {
  const T* x;
  T* y;
  Sample sample;
  DropoutNumbers<T> numbers;

  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    static_assert(N == kWords || N == 1);
    const PhiloxBlock words = sample.block(static_cast<uint64_t>(i) / kWords);
    Vector<T, N> values = load<N>(x + i);
    for (int c = 0; c < N; ++c) {
      const uint32_t word = N == 1 ? words.word[i % kWords] : words.word[c];
      values[c] = numbers(values[c], word);
    }
    store(y + i, values);
  }
};

void dropout(const Context& ctx, const DropoutArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Dropout<T> f{static_cast<const T*>(args.x), static_cast<T*>(args.y), sample_of(ctx, args.seed, args.step),
                       DropoutNumbers<T>::of(args.p)};
    for_vectors<kWords>(ctx, args.size, aligned(f.x, f.y), f);
  });
}

}  // namespace st_moe::cuda
