#include "cpu/element_types.h"
#include "cpu/ops.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class In>
static void mask_from(const TokenMaskArgs& args) {
  const auto* x = static_cast<const typename In::Stored*>(args.x);
  bool has_nan = false;
  for (int64_t i = 0; i < args.size; ++i) {
    const auto value = In::load(x[i]);
    args.mask[i] = value != 0;
    has_nan |= value != value;
  }
  if (has_nan) fail(ErrorCode::non_finite, "mask must be 0 for padding and another number for a token, got NaN");
}

void token_mask(const Context&, const TokenMaskArgs& args) {
  switch (args.dtype) {
    case DType::f32: return mask_from<F32>(args);
    case DType::f64: return mask_from<F64>(args);
    case DType::bf16: return mask_from<Bf16>(args);
    case DType::f16: return mask_from<F16>(args);
    case DType::i32: return mask_from<I32>(args);
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA
