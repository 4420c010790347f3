#include "core/ops/creation.h"
#include "core/blocks.h"
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

// Rows of blocks at a time: at least a block of work.
template <class F>
static void for_rows(const Context& ctx, const ConvertArgs& args, F&& f) {
  if (args.size == 0) return;
  const int64_t rows = max_of<int64_t>(1, kElementBlock / args.columns);
  parallel_blocks(ctx, args.size / args.columns, rows, f);
}

template <class In>
static void to_blocks(const Context& ctx, const ConvertArgs& args) {
  const auto* in = static_cast<const typename In::Stored*>(args.in);
  auto* q = static_cast<int8_t*>(args.out);
  auto* scales = reinterpret_cast<uint16_t*>(q + scales_at(args.size));
  const int64_t columns = args.columns, blocks = blocks_of(columns);
  if (args.size == 0) return;
  std::memset(q + args.size, 0, static_cast<size_t>(scales_at(args.size) - args.size));
  for_rows(ctx, args, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = row * columns + b * kBlockElements,
                      count = min_of(kBlockElements, columns - b * kBlockElements);
        float x[kBlockElements];
        for (int64_t i = 0; i < count; ++i) x[i] = static_cast<float>(In::load(in[at + i]));
        scales[row * blocks + b] =
            quantize_block(count, [&](int64_t i) { return x[i]; }, [&](int64_t i, int8_t level) { q[at + i] = level; });
      }
  });
}

template <class Out>
static void from_blocks(const Context& ctx, const ConvertArgs& args) {
  const auto* q = static_cast<const int8_t*>(args.in);
  const auto* scales = reinterpret_cast<const uint16_t*>(q + scales_at(args.size));
  auto* out = static_cast<typename Out::Stored*>(args.out);
  const int64_t columns = args.columns, blocks = blocks_of(columns);
  for_rows(ctx, args, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t b = 0; b < blocks; ++b) {
        const float scale = f16_to_float(scales[row * blocks + b]);
        const int64_t at = row * columns;
        for (int64_t i = at + b * kBlockElements; i < at + min_of(columns, (b + 1) * kBlockElements); ++i)
          out[i] = Out::store(static_cast<float>(q[i]) * scale);
      }
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
    case DType::int8: return to_blocks<In>(ctx, args);
  }
}

static void convert_blocks(const Context& ctx, const ConvertArgs& args) {
  switch (args.out_dtype) {
    case DType::f32: return from_blocks<F32>(ctx, args);
    case DType::f64: return from_blocks<F64>(ctx, args);
    case DType::bf16: return from_blocks<Bf16>(ctx, args);
    case DType::f16: return from_blocks<F16>(ctx, args);
    case DType::i32: return from_blocks<I32>(ctx, args);
    case DType::int8: return;
  }
}

static void convert_copy(const Context& ctx, const ConvertArgs& args) {
  const char* in = static_cast<const char*>(args.in);
  char* out = static_cast<char*>(args.out);
  parallel_blocks(
      ctx, bytes_of(args.in_dtype, args.size, args.columns), 8 * kElementBlock,
      [=](int64_t begin, int64_t end) { std::memcpy(out + begin, in + begin, static_cast<size_t>(end - begin)); });
}

void convert(const Context& ctx, const ConvertArgs& args) {
  if (args.in_dtype == args.out_dtype) return convert_copy(ctx, args);
  switch (args.in_dtype) {
    case DType::f32: return convert_from<F32>(ctx, args);
    case DType::f64: return convert_from<F64>(ctx, args);
    case DType::bf16: return convert_from<Bf16>(ctx, args);
    case DType::f16: return convert_from<F16>(ctx, args);
    case DType::i32: return convert_from<I32>(ctx, args);
    case DType::int8: return convert_blocks(ctx, args);
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA
