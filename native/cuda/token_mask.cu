#include "core/convert.h"
#include "core/router.h"
#include "cuda/vector.cuh"

namespace st_moe::cuda {

#include "core/element_types.inc"

template <class In>
struct MaskEntry {
  const typename In::Stored* x;
  int32_t* mask;
  bool importance;
  Stream::ErrorFlag* error_flag;

  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    const Vector<typename In::Stored, N> values = load<N>(x + i);
    Vector<int32_t, N> entries;
    for (int c = 0; c < N; ++c) {
      const auto value = In::load(values[c]);
      if (!is_mask(value, importance)) report_error(error_flag, importance ? kImportanceError : kMaskError, 0);
      entries[c] = mask_entry(value, importance);
    }
    store(mask + i, entries);
  }
};

template <class In>
static void mask_from(const Context& ctx, const TokenMaskArgs& args) {
  const auto* x = static_cast<const typename In::Stored*>(args.x);
  for_vectors<vector_width<typename In::Stored, int32_t>>(
      ctx, args.size, aligned(x, args.mask),
      MaskEntry<In>{x, args.mask, args.importance != 0, stream_of(ctx).error_flag()});
}

void token_mask(const Context& ctx, const TokenMaskArgs& args) {
  switch (args.dtype) {
    case DType::f32: return mask_from<F32>(ctx, args);
    case DType::f64: return mask_from<F64>(ctx, args);
    case DType::bf16: return mask_from<Bf16>(ctx, args);
    case DType::f16: return mask_from<F16>(ctx, args);
    case DType::i32: return mask_from<I32>(ctx, args);
    case DType::int8: return;  // no tensor of elements
  }
}

}  // namespace st_moe::cuda
