#include "core/convert.h"
#include "cpu/ops.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
static void fill_with(const Context& ctx, void* out, int64_t size, T value) {
  T* to = static_cast<T*>(out);
  parallel_blocks(ctx, size, 4 * kElementBlock, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = value;
  });
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

}  // namespace st_moe::cpu::ST_MOE_ISA
