#pragma once
#include <cstdint>

#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

#include "cpu/kernel.h"

namespace st_moe::cpu::ST_MOE_ISA {

// While one lives, its thread takes subnormal operands for 0 and returns 0 for subnormal results. Many processors are
// slow with them, and a softmax of distant logits makes many.
class WithoutSubnormals {
 public:
  WithoutSubnormals() : saved_(control()) { set_control(saved_ | kFlush); }
  ~WithoutSubnormals() { set_control(saved_); }
  WithoutSubnormals(const WithoutSubnormals&) = delete;
  WithoutSubnormals& operator=(const WithoutSubnormals&) = delete;

 private:
#if defined(__SSE__) || defined(_M_X64)                   // MXCSR
  static constexpr uint64_t kFlush = 1u << 15 | 1u << 6;  // results, operands
  static uint64_t control() { return _mm_getcsr(); }
  static void set_control(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)  // FPCR
  static constexpr uint64_t kFlush = 1u << 24;
  static uint64_t control() {
    uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set_control(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
  static constexpr uint64_t kFlush = 0;
  static uint64_t control() { return 0; }
  static void set_control(uint64_t) {}
#endif
  const uint64_t saved_;
};

}  // namespace st_moe::cpu::ST_MOE_ISA
