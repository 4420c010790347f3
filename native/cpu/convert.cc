#include "core/ops/creation.h"
#include "cpu/element_types.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

template <class In, class Out>
static void convert_to(const Context& ctx, const ConvertArgs& args) {
  const auto* __restrict in = static_cast<const typename In::Stored*>(args.in);
  auto* __restrict out = static_cast<typename Out::Stored*>(args.out);
  parallel_blocks(ctx, args.size, kElementBlock, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) out[i] = Out::store(In::load(in[i]));
  });
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

static void convert_copy(const Context& ctx, const ConvertArgs& args) {
  const char* in = static_cast<const char*>(args.in);
  char* out = static_cast<char*>(args.out);
  const int64_t element = static_cast<int64_t>(dtype_size(args.in_dtype));
  parallel_blocks(ctx, args.size * element, 8 * kElementBlock, [=](int64_t begin, int64_t end) {
    std::memcpy(out + begin, in + begin, static_cast<size_t>(end - begin));
  });
}

void convert(const Context& ctx, const ConvertArgs& args) {
  if (args.in_dtype == args.out_dtype) return convert_copy(ctx, args);
  switch (args.in_dtype) {
    case DType::f32: return convert_from<F32>(ctx, args);
    case DType::f64: return convert_from<F64>(ctx, args);
    case DType::bf16: return convert_from<Bf16>(ctx, args);
    case DType::f16: return convert_from<F16>(ctx, args);
    case DType::i32: return convert_from<I32>(ctx, args);
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA
