#pragma once
#include <cstddef>
#include <cstdint>

#include "core/op_args.h"
#include "core/steps.h"

// The interface between the binding and a backend: one table of memory functions and ops per kind of device.
// Kernels know pointers, sizes and a stream. Everything here is plain data, so a backend may live in a plugin.
namespace st_moe {

struct OpTable {
#define OP(Name, name) Op<Given<Name##Args>> name = nullptr;
#include "core/op_list.inc"
};

#define ST_MOE_STRUCTS "core/abi/backend.inc"
#include "core/abi/declare.inc"

// Elements of a row of A. They are saved in the type of GEMM operands: two of 16 bits in an element.
inline int64_t saved_columns(const Backend& backend, Activation activation, int64_t H, DType compute) {
  const int64_t values = backend.saved_values ? backend.saved_values(activation, H, compute) : 0;
  return dtype_size(compute) == 2 ? (values + 1) / 2 : values;
}

// Compiled in, for the instruction set that cpu/isa.h chooses. Throws Error(option) if ST_MOE_ISA names none.
const Backend& cpu_backend();

}  // namespace st_moe
