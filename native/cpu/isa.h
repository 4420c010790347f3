#pragma once
#include <cmath>

#include "cpu/processor.h"

// The instruction sets of the CPU ops, widest first: X(name, whether this machine has it, the bf16_dot_speed() from
// which on it is the default). Those with bf16 GEMMs, wider than the others, have a fourth column: the instruction set
// of everything else; see bf16_gemm.h. If this file itself is compiled with ST_MOE_ISA, that is the only one (as in
// tests of the CUDA backend).
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(ST_MOE_ISA)
#if defined(ST_MOE_TESTS)
#define ST_MOE_CPU_EMULATED_ISAS(X) X(amx_emulated, st_moe::cpu::has_bf16(), HUGE_VAL, avx512)
#else
#define ST_MOE_CPU_EMULATED_ISAS(X)
#endif
#define ST_MOE_CPU_BF16_ISAS(X)                                            \
  X(amx, st_moe::cpu::has_bf16() && st_moe::cpu::may_use_amx(), 0, avx512) \
  X(avx512bf16, st_moe::cpu::has_bf16(), 1.3, avx512)                      \
  ST_MOE_CPU_EMULATED_ISAS(X)
#define ST_MOE_CPU_ISAS(X)            \
  X(avx512, st_moe::cpu::has_v4(), 0) \
  X(avx2, st_moe::cpu::has_v3(), 0)   \
  X(baseline, true, 0)
#else
#if (defined(__aarch64__) || defined(_M_ARM64)) && !defined(ST_MOE_ISA)
#define ST_MOE_CPU_BF16_ISAS(X) X(neonbf16, st_moe::cpu::has_bf16(), 1.3, baseline)
#else
#define ST_MOE_CPU_BF16_ISAS(X)
#endif
#define ST_MOE_CPU_ISAS(X) X(baseline, true, 0)
#endif

namespace st_moe {

struct OpTable;

}  // namespace st_moe

namespace st_moe::cpu {

#define ST_MOE_DECLARE(isa, supported, ...) \
  namespace isa {                           \
  const OpTable& op_table();                \
  }
ST_MOE_CPU_BF16_ISAS(ST_MOE_DECLARE)
ST_MOE_CPU_ISAS(ST_MOE_DECLARE)
#undef ST_MOE_DECLARE

struct Isa {
  const char* name;
  const OpTable& (*op_table)();
  bool supported;
  double default_from;   // a bf16_dot_speed()
  const char* narrower;  // whose ops it has, but for their GEMMs; or empty
};

// The one that `wanted`, the value of ST_MOE_ISA, names: Error(option) if this machine lacks it. If it is null or
// empty, the default at this bf16_dot_speed().
Isa choose_isa(const char* wanted, double dot_speed);

// Calls f(isa) for each, widest first.
template <class F>
inline void for_each_isa(F&& f) {
#define ST_MOE_VISIT(isa, supported, default_from, ...) \
  f(Isa{#isa, isa::op_table, supported, default_from, "" #__VA_ARGS__});
  ST_MOE_CPU_BF16_ISAS(ST_MOE_VISIT)
  ST_MOE_CPU_ISAS(ST_MOE_VISIT)
#undef ST_MOE_VISIT
}

}  // namespace st_moe::cpu
