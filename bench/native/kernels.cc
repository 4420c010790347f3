#include "kernels.h"

#if defined(ST_MOE_AMX)
#include "cpu/amx.h"
#endif
#include "cpu/gemm.h"
#include "cpu/simd.h"

#if !defined(ST_MOE_NARROWER)
#define ST_MOE_NARROWER ST_MOE_ISA
#endif

namespace st_moe::cpu::ST_MOE_NARROWER {
template <class T>
void gemm(const Context&, const GemmProblem<T>*, int64_t, DType);
template <class T>
int64_t packed_size(const Context&, int64_t, int64_t, DType);
template <class T>
void pack_weights(const Context&, const MatrixView<T>&, int64_t, int64_t, int64_t, int64_t, DType, T*);
}  // namespace st_moe::cpu::ST_MOE_NARROWER

namespace st_moe::cpu::ST_MOE_ISA {
const Bf16Gemm& bf16_gemm();

namespace {

using bench::ExpertGemm, bench::GroupedGemm;
namespace ops = cpu::ST_MOE_NARROWER;

Context with_bf16(const Context& ctx) {
#if defined(ST_MOE_BF16_GEMM)
  return {ctx.threads, const_cast<Bf16Gemm*>(&bf16_gemm())};
#else
  return ctx;
#endif
}

MatrixView<float> view(const bench::Operand& operand) {
  return {operand.data, operand.row, operand.column};
}

int64_t packed_weights_size(const GroupedGemm& group) {
  const ExpertGemm& one = group.experts[0];
  return group.weight_gradient ? 0 : ops::packed_size<float>(with_bf16({1, nullptr}), one.K, one.N, group.compute);
}

void pack(const Context& ctx, const GroupedGemm& group, float* out) {
  const ExpertGemm& one = group.experts[0];
  const int64_t experts = static_cast<int64_t>(group.experts.size());
  ops::pack_weights(with_bf16(ctx), view(one.b), experts, one.N * one.K, one.K, one.N, group.compute, out);
}

void run_gemm(const Context& ctx, const GroupedGemm& group) {
  const int64_t experts = static_cast<int64_t>(group.experts.size());
  Scratch<GemmProblem<float>> problems(experts);
  for (int64_t e = 0; e < experts; ++e) {
    const ExpertGemm& one = group.experts[static_cast<size_t>(e)];
    GemmProblem<float>& p = problems[e] = {};
    p.M = one.M, p.N = one.N, p.K = one.K, p.a = view(one.a), p.b = view(one.b);
    p.c = one.c, p.c_stride = one.N, p.packed_b = one.packed_b;
    const int64_t bytes = experts * one.M * one.N * static_cast<int64_t>(sizeof(float));
    p.stream = group.weight_gradient && bytes >= kStreamBytes;  // as in the layer
  }
  ops::gemm<float>(with_bf16(ctx), problems.get(), experts, group.compute);
}

// Twelve independent chains hide the latency of two multiply-add units and fit sixteen registers. They start apart, or
// the compiler would see one in all.
constexpr int kChains = 12;

template <class Step>
void run_chains(int64_t rounds, Step step) {
  using S = Simd<float>;
  static volatile float start = 0.999f;  // not known to the compiler, so nothing is folded
  S::V acc[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) acc[i] = S::set(start * static_cast<float>(i));
  for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = step(acc[i]);
  }
  S::V total{};
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) total += acc[i];
  start = S::sum(total) > -1 ? 0.999f : 0.998f;
}

double multiply_add(int64_t rounds) {
  using S = Simd<float>;
  static volatile float factor = 0.999f;
  const S::V x = S::set(factor), y = S::set(1 - factor);
  run_chains(rounds, [=](S::V acc) { return acc * x + y; });
  return 2.0 * kChains * S::lanes * static_cast<double>(rounds);
}

#if defined(ST_MOE_AMX)
double bf16_tiles_in_registers(int64_t rounds) {
  [[maybe_unused]] const TileConfiguration configuration;
  tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
  for (int64_t n = 0; n < rounds; ++n)
    tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>(), tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
  return 4.0 * 2 * 16 * 16 * 32 * static_cast<double>(rounds);
}
constexpr auto bf16_dot = bf16_tiles_in_registers;
#elif defined(__AVX512BF16__)
double bf16_dot_in_registers(int64_t rounds) {
  static volatile short one = 0x3f80;
  const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi16(one));
  run_chains(rounds, [=](Simd<float>::V acc) { return _mm512_dpbf16_ps(acc, x, x); });
  return 2.0 * kChains * 32 * static_cast<double>(rounds);
}
constexpr auto bf16_dot = bf16_dot_in_registers;
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
double bf16_dot_in_registers(int64_t rounds) {
  static volatile uint16_t one = 0x3f80;
  const bfloat16x8_t x = reinterpret_cast<bfloat16x8_t>(vdupq_n_u16(one));
  run_chains(rounds, [=](Simd<float>::V acc) {
    return reinterpret_cast<Simd<float>::V>(vbfdotq_f32(reinterpret_cast<float32x4_t>(acc), x, x));
  });
  return 2.0 * kChains * 8 * static_cast<double>(rounds);
}
constexpr auto bf16_dot = bf16_dot_in_registers;
#else
constexpr double (*bf16_dot)(int64_t) = nullptr;
#endif

float read(const float* data, int64_t count) {
  return sum(data, count);
}

}  // namespace

const bench::Kernels& bench_kernels() {
  static const bench::Kernels kernels{run_gemm, packed_weights_size, pack, multiply_add, bf16_dot, read};
  return kernels;
}

}  // namespace st_moe::cpu::ST_MOE_ISA
