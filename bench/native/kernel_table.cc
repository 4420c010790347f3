#include <cstring>

#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// isas.inc comes from CMake: X(isa) for each instruction set that the ops are compiled for.
namespace st_moe::cpu {
#define X(isa)                           \
  namespace isa {                        \
  const bench::Kernels& bench_kernels(); \
  }
#include "isas.inc"
#undef X
}  // namespace st_moe::cpu

namespace st_moe::bench {

const Kernels* kernels_for(const char* variant) {
#define X(isa) \
  if (std::strcmp(variant, #isa) == 0) return &cpu::isa::bench_kernels();
#include "isas.inc"
#undef X
  return nullptr;
}

const char* product_name(Product product) {
  constexpr const char* names[] = {"a", "y", "dh", "dx", "dw1", "dw2"};
  return names[static_cast<int>(product)];
}

ProductShape shape_of(Product product, int64_t D, int64_t H) {
  switch (product) {
    case Product::a: return {0, 2 * H, D, true};
    case Product::y: return {0, D, H, true};
    case Product::dh: return {0, H, D, false};
    case Product::dx: return {0, D, 2 * H, false};
    case Product::dw1: return {2 * H, D, 0, false};
    case Product::dw2: return {D, H, 0, false};
  }
  return {};
}

#if defined(__x86_64__)
bool has_bf16_dot() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f");
}

__attribute__((target("avx512f,avx512bf16"))) double bf16_dot(int64_t rounds) {
  constexpr int chains = 12;             // they start apart, or the compiler would see one in all
  static volatile short start = 0x3f80;  // 1.0; not known to the compiler
  const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi16(start));
  __m512 acc[chains];
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], x, x);
  }
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) total = _mm512_add_ps(total, acc[i]);
  start = _mm512_reduce_add_ps(total) >= 0 ? 0x3f80 : 0;
  return 2.0 * chains * 32 * static_cast<double>(rounds);
}
#else
bool has_bf16_dot() {
  return false;
}
double bf16_dot(int64_t) {
  return 0;
}
#endif

}  // namespace st_moe::bench
