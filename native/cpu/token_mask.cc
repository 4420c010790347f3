#include "core/router.h"
#include "cpu/element_types.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class In>
static void mask_from(const TokenMaskArgs& args) {
  const auto* x = static_cast<const typename In::Stored*>(args.x);
  bool valid = true;
  for (int64_t i = 0; i < args.size; ++i) {
    const auto value = In::load(x[i]);
    args.mask[i] = mask_entry(value, args.importance);
    valid &= is_mask(value, args.importance);
  }
  if (valid) return;
  if (args.importance) fail(ErrorCode::option, "importance must be from 0 to 1");
  fail(ErrorCode::non_finite, "mask must be 0 for padding and another number for a token, got NaN");
}

void token_mask(const Context&, const TokenMaskArgs& args) {
  switch (args.dtype) {
    case DType::f32: return mask_from<F32>(args);
    case DType::f64: return mask_from<F64>(args);
    case DType::bf16: return mask_from<Bf16>(args);
    case DType::f16: return mask_from<F16>(args);
    case DType::i32: return mask_from<I32>(args);
    case DType::int8: return;  // no tensor of elements
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA
