#include "core/convert.h"
#include "cuda/kernel.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

#include "core/element_types.inc"

template <class In, class Out>
struct Convert {
  const typename In::Stored* in;
  typename Out::Stored* out;
  __device__ void operator()(int64_t i) const { out[i] = Out::store(In::load(in[i])); }
};

template <class In, class Out>
static void convert_to(const Context& ctx, const ConvertArgs& args) {
  elementwise(
      ctx, args.size,
      Convert<In, Out>{static_cast<const typename In::Stored*>(args.in), static_cast<typename Out::Stored*>(args.out)});
}

template <class In>
static void convert_from(const Context& ctx, const ConvertArgs& args) {
  switch (args.out_dtype) {
    case DType::f32: return convert_to<In, F32>(ctx, args);
    case DType::f64: return convert_to<In, F64>(ctx, args);
    case DType::bf16: return convert_to<In, Bf16>(ctx, args);
    case DType::f16: return convert_to<In, F16>(ctx, args);
    case DType::i32: return convert_to<In, I32>(ctx, args);
  }
}

void convert(const Context& ctx, const ConvertArgs& args) {
  if (args.in_dtype == args.out_dtype) {
    const size_t bytes = static_cast<size_t>(args.size) * dtype_size(args.in_dtype);
    if (bytes == 0) return;
    return check(cudaMemcpyAsync(args.out, args.in, bytes, cudaMemcpyDeviceToDevice, stream_of(ctx).stream()), "copy");
  }
  switch (args.in_dtype) {
    case DType::f32: return convert_from<F32>(ctx, args);
    case DType::f64: return convert_from<F64>(ctx, args);
    case DType::bf16: return convert_from<Bf16>(ctx, args);
    case DType::f16: return convert_from<F16>(ctx, args);
    case DType::i32: return convert_from<I32>(ctx, args);
  }
}

}  // namespace st_moe::cuda
