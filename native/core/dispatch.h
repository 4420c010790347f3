#pragma once
#include "core/dtype.h"
#include "core/error.h"

namespace st_moe {

// Calls f(T{}) with T = float or double.
template <class F>
static inline void dispatch_float(DType dtype, F&& f) {
  if (dtype == DType::f32) return f(float{});
  if (dtype == DType::f64) return f(double{});
  fail(ErrorCode::dtype, "dtype must be f32 or f64, got %s", dtype_name(dtype));
}

// Calls f(T{}) with an unsigned integer of the size of the dtype.
template <class F>
static inline void dispatch_size(DType dtype, F&& f) {
  switch (dtype_size(dtype)) {
    case 1: return f(uint8_t{});
    case 2: return f(uint16_t{});
    case 4: return f(uint32_t{});
    default: return f(uint64_t{});
  }
}

}  // namespace st_moe
