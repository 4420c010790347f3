#include "core/convert.h"
#include "cuda/kernel.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

template <class T>
struct Fill {
  T* out;
  T value;
  __device__ void operator()(int64_t i) const { out[i] = value; }
};

template <class T>
static void fill_with(const Context& ctx, void* out, int64_t size, T value) {
  elementwise(ctx, size, Fill<T>{static_cast<T*>(out), value});
}

void full(const Context& ctx, const FullArgs& args) {
  const float rounded = static_cast<float>(args.value);
  switch (args.dtype) {
    case DType::f32: return fill_with(ctx, args.out, args.size, rounded);
    case DType::f64: return fill_with(ctx, args.out, args.size, args.value);
    case DType::bf16: return fill_with(ctx, args.out, args.size, float_to_bf16(rounded));
    case DType::f16: return fill_with(ctx, args.out, args.size, float_to_f16(rounded));
    case DType::i32: return fill_with(ctx, args.out, args.size, saturate(args.value));
  }
}

}  // namespace st_moe::cuda
