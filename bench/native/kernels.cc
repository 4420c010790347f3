#include "kernels.h"

#include "cpu/gemm.h"
#include "cpu/simd.h"

namespace st_moe::cpu::ST_MOE_ISA {
namespace {

using bench::GemmArgs, bench::GemmShape;

MatrixView<float> weights_of(const GemmArgs& args, int64_t expert) {
  const GemmShape s = args.shape();
  const float* w = args.b + expert * s.N * s.K;
  return s.transposed ? MatrixView<float>{w, 1, s.K} : MatrixView<float>{w, s.N, 1};
}

int64_t packed_weights_size(const GemmArgs& args) {
  const GemmShape s = args.shape();
  return args.weight_gradient() ? 0 : packed_size<float>(s.K, s.N, args.compute);
}

void pack(const Context& ctx, const GemmArgs& args, float* out) {
  const GemmShape s = args.shape();
  const int64_t experts = static_cast<int64_t>(args.rows.size());
  pack_weights(ctx, weights_of(args, 0), experts, s.N * s.K, s.K, s.N, args.compute, out);
}

void run_gemm(const Context& ctx, const GemmArgs& args) {
  const GemmShape s = args.shape();
  const int64_t packed = args.packed ? packed_weights_size(args) : 0, M = s.M, N = s.N, K = s.K;
  const int64_t experts = static_cast<int64_t>(args.rows.size());
  const int64_t gradient_bytes = experts * M * N * static_cast<int64_t>(sizeof(float));
  Scratch<GemmProblem<float>> problems(experts);
  int64_t row = 0;
  for (int64_t e = 0; e < experts; row += args.rows[static_cast<size_t>(e++)]) {
    const int64_t rows = args.rows[static_cast<size_t>(e)];
    GemmProblem<float>& p = problems[e] = {};
    p.N = N, p.c_stride = N;
    if (args.weight_gradient()) {
      p.M = M, p.K = rows, p.c = args.c + e * M * N;
      p.a = {args.a + row * M, 1, M}, p.b = {args.b + row * N, N, 1};
      p.stream = gradient_bytes >= kStreamBytes;  // as in the layer
    } else {
      p.M = rows, p.K = K, p.c = args.c + row * N;
      p.a = {args.a + row * K, K, 1}, p.b = weights_of(args, e);
      if (packed > 0) p.packed_b = args.packed + e * packed;
    }
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

}  // namespace

const bench::Kernels& bench_kernels() {
  static const bench::Kernels kernels{run_gemm, packed_weights_size, pack, multiply_add, read};
  return kernels;
}

}  // namespace st_moe::cpu::ST_MOE_ISA
