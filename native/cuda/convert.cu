#include "core/ops/creation.h"
#include "core/convert.h"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

#include "core/element_types.inc"

template <class In, class Out>
struct Convert {
  const typename In::Stored* in;
  typename Out::Stored* out;
  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    const Vector<typename In::Stored, N> values = load<N>(in + i);
    Vector<typename Out::Stored, N> converted;
    for (int c = 0; c < N; ++c) converted[c] = Out::store(In::load(values[c]));
    store(out + i, converted);
  }
};

template <class In, class Out>
static void convert_to(const Context& ctx, const ConvertArgs& args) {
  const Convert<In, Out> f{static_cast<const typename In::Stored*>(args.in),
                           static_cast<typename Out::Stored*>(args.out)};
  for_vectors<vector_width<typename In::Stored, typename Out::Stored>>(ctx, args.size, aligned(f.in, f.out), f);
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
