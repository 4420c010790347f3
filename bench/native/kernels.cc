#include "kernels.h"

#include "cpu/gemm.h"
#include "cpu/simd.h"

namespace st_moe::cpu::ST_MOE_ISA {
namespace {

using bench::Product, bench::ProductArgs, bench::ProductShape;

MatrixView<float> weights_of(const ProductArgs& args, const ProductShape& shape, int64_t expert) {
  const float* w = args.b + expert * shape.N * shape.K;
  return shape.transposed ? MatrixView<float>{w, 1, shape.K} : MatrixView<float>{w, shape.N, 1};
}

int64_t packed_weights_size(const ProductArgs& args) {
  const ProductShape shape = bench::shape_of(args.product, args.D, args.H);
  return shape.rows_of_c > 0 ? 0 : packed_size<float>(shape.K, shape.N, args.compute);
}

void pack(const Context& ctx, const ProductArgs& args, float* out) {
  const ProductShape shape = bench::shape_of(args.product, args.D, args.H);
  const int64_t experts = static_cast<int64_t>(args.rows.size());
  pack_weights(ctx, weights_of(args, shape, 0), experts, shape.N * shape.K, shape.K, shape.N, args.compute, out);
}

void run_product(const Context& ctx, const ProductArgs& args) {
  const ProductShape shape = bench::shape_of(args.product, args.D, args.H);
  const int64_t packed = args.packed ? packed_weights_size(args) : 0;
  const int64_t experts = static_cast<int64_t>(args.rows.size()), N = shape.N;
  const int64_t gradient_bytes = experts * shape.rows_of_c * N * static_cast<int64_t>(sizeof(float));
  Scratch<GemmProblem<float>> problems(experts);
  int64_t row = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t rows = args.rows[static_cast<size_t>(e)];
    GemmProblem<float> p{};
    p.N = N, p.c_stride = N;
    if (shape.rows_of_c > 0) {
      const int64_t M = shape.rows_of_c;
      p.M = M, p.K = rows;
      p.a = {args.a + row * M, 1, M};
      p.b = {args.b + row * N, N, 1};
      p.c = args.c + e * M * N;
      p.stream = gradient_bytes >= kStreamBytes;  // as in the layer
    } else {
      const int64_t K = shape.K;
      p.M = rows, p.K = K;
      p.a = {args.a + row * K, K, 1};
      p.b = weights_of(args, shape, e);
      if (packed > 0) p.packed_b = args.packed + e * packed;
      p.c = args.c + row * N;
    }
    problems[e] = p;
    row += rows;
  }
  gemm(ctx, problems.get(), experts, args.compute);
}

// Twelve independent chains hide the latency of two multiply-add units and fit sixteen registers.
double multiply_add(int64_t rounds) {
  using S = Simd<float>;
  constexpr int chains = 12;
  static volatile float start = 0.999f;  // not known to the compiler, so nothing is folded
  const S::V x = S::set(start), y = S::set(1 - start);
  S::V acc[chains];
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) acc[i] = S::set(start * static_cast<float>(i));
  for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) acc[i] = acc[i] * x + y;
  }
  S::V total{};
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) total += acc[i];
  start = S::sum(total) > -1 ? 0.999f : 0.998f;
  return 2.0 * chains * S::lanes * static_cast<double>(rounds);
}

float read(const float* data, int64_t count) {
  return sum(data, count);
}

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool fused = true;
#else
constexpr bool fused = false;
#endif

}  // namespace

const bench::Kernels& bench_kernels() {
  static const bench::Kernels kernels{run_product, packed_weights_size, pack, multiply_add, read, fused};
  return kernels;
}

}  // namespace st_moe::cpu::ST_MOE_ISA
