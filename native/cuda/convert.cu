#include "core/ops/creation.h"
#include "core/blocks.h"
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

// A thread for each block of a row.
template <class In>
struct ToBlocks {
  const typename In::Stored* in;
  int8_t* q;
  uint16_t* scales;
  int64_t columns, blocks;

  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    const int64_t row = i / blocks, b = i - row * blocks, at = row * columns + b * kBlockElements;
    scales[i] = quantize_block(
        min_of(kBlockElements, columns - b * kBlockElements),
        [&](int64_t j) { return static_cast<float>(In::load(in[at + j])); },
        [&](int64_t j, int8_t level) { q[at + j] = level; });
  }
};

template <class Out>
struct FromBlocks {
  const int8_t* q;
  const uint16_t* scales;
  typename Out::Stored* out;
  int64_t columns, blocks;

  template <int N>
  __device__ void operator()(Width<N>, int64_t i) const {
    const int64_t row = i / columns, b = (i - row * columns) / kBlockElements;
    out[i] = Out::store(static_cast<float>(q[i]) * f16_to_float(scales[row * blocks + b]));
  }
};

template <class In>
static void to_blocks(const Context& ctx, const ConvertArgs& args) {
  auto* q = static_cast<int8_t*>(args.out);
  const int64_t blocks = blocks_of(args.columns), at = scales_at(args.size);
  if (args.size == 0) return;
  check(cudaMemsetAsync(q + args.size, 0, static_cast<size_t>(at - args.size), stream_of(ctx).stream()), "clear");
  for_vectors<1>(ctx, args.size / args.columns * blocks, true,
                 ToBlocks<In>{static_cast<const typename In::Stored*>(args.in), q, reinterpret_cast<uint16_t*>(q + at),
                              args.columns, blocks});
}

template <class Out>
static void from_blocks(const Context& ctx, const ConvertArgs& args) {
  const auto* q = static_cast<const int8_t*>(args.in);
  for_vectors<1>(ctx, args.size, true,
                 FromBlocks<Out>{q, reinterpret_cast<const uint16_t*>(q + scales_at(args.size)),
                                 static_cast<typename Out::Stored*>(args.out), args.columns, blocks_of(args.columns)});
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

void convert(const Context& ctx, const ConvertArgs& args) {
  if (args.in_dtype == args.out_dtype) {
    const auto bytes = static_cast<size_t>(bytes_of(args.in_dtype, args.size, args.columns));
    if (bytes == 0) return;
    return check(cudaMemcpyAsync(args.out, args.in, bytes, cudaMemcpyDeviceToDevice, stream_of(ctx).stream()), "copy");
  }
  switch (args.in_dtype) {
    case DType::f32: return convert_from<F32>(ctx, args);
    case DType::f64: return convert_from<F64>(ctx, args);
    case DType::bf16: return convert_from<Bf16>(ctx, args);
    case DType::f16: return convert_from<F16>(ctx, args);
    case DType::i32: return convert_from<I32>(ctx, args);
    case DType::int8: return convert_blocks(ctx, args);
  }
}

}  // namespace st_moe::cuda
