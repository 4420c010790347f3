#include "core/convert.h"
#include "cuda/kernel.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

#include "core/element_types.inc"

template <class In>
struct MaskEntry {
  const typename In::Stored* x;
  int32_t* mask;
  Stream::ErrorFlag* error_flag;

  __device__ void operator()(int64_t i) const {
    const auto value = In::load(x[i]);
    if (value != value) report_error(error_flag, kMaskError, 0);
    mask[i] = value != 0;
  }
};

template <class In>
static void mask_from(const Context& ctx, const TokenMaskArgs& args) {
  const auto* x = static_cast<const typename In::Stored*>(args.x);
  elementwise(ctx, args.size, MaskEntry<In>{x, args.mask, stream_of(ctx).error_flag()});
}

void token_mask(const Context& ctx, const TokenMaskArgs& args) {
  switch (args.dtype) {
    case DType::f32: return mask_from<F32>(ctx, args);
    case DType::f64: return mask_from<F64>(ctx, args);
    case DType::bf16: return mask_from<Bf16>(ctx, args);
    case DType::f16: return mask_from<F16>(ctx, args);
    case DType::i32: return mask_from<I32>(ctx, args);
  }
}

}  // namespace st_moe::cuda
