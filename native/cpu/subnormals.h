#pragma once
#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

#include "cpu/kernel.h"

namespace st_moe::cpu::ST_MOE_ISA {

// While one lives, its thread takes subnormal operands for 0 and returns 0 for subnormal results. Many processors are
// slow with them, and a softmax of distant logits makes many.
class WithoutSubnormals {
 public:
#if defined(__SSE__) || defined(_M_X64)
  WithoutSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
  ~WithoutSubnormals() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kFlushToZero = 1u << 15, kDenormalsAreZero = 1u << 6;
  const unsigned saved_;
#endif

 public:
  WithoutSubnormals(const WithoutSubnormals&) = delete;
  WithoutSubnormals& operator=(const WithoutSubnormals&) = delete;
};

}  // namespace st_moe::cpu::ST_MOE_ISA
