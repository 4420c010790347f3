#pragma once
#include <cstddef>
#include <cstdint>

#include "core/op_args.h"
#include "core/optimizers.h"

// The interface between the binding and a backend: one table of memory functions and ops per kind of device.
// Kernels know pointers, sizes and a stream. Everything here is plain data, so a backend may live in a plugin.
namespace st_moe {

constexpr uint32_t kBackendAbi = 22;

// ---- the table ----------------------------------------------------------------------------------------------

struct OpTable {
#define OP(Name, name) Op<Given<Name##Args>> name;
#include "core/op_list.inc"
};

// ---- captured steps ---------------------------------------------------------------------------------------------

// The values that change from one replay of a CUDA graph to the next: the numbers of one sample, or the factors of one
// parameter update. During capture, `step` of such an op is the index, from 1, of its StepArgs in the list for replay.
struct StepArgs {
  uint64_t seed, step;
  FactorList factors;
};

// From begin to end, ops are captured and do not run, allocations belong to the step, and nothing is copied to or from
// the host. One capture at a time per stream.
struct CaptureTable {
  Status (*begin)(const Context&);
  void (*outside)(const Context&, bool on);  // between on and off, ops run immediately, outside capture
  // *step owns the allocated memory, *bytes, also if the capture is abandoned (keep = 0) or fails.
  Status (*end)(const Context&, int32_t keep, void** step, size_t* bytes);
  Status (*replay)(const Context&, void* step, const StepArgs* args, int64_t count);
  void (*release)(const Context&, void* step);
};

struct Backend {
  uint32_t abi;                                                   // kBackendAbi
  const char* name;                                               // "cpu", "cuda"
  const char* variant;                                            // instruction set or GPU
  int64_t (*saved_values)(Activation, int64_t H, DType compute);  // of a row of A, as expert_ffn saves it
  void* (*allocate)(const Context&, size_t bytes);                // 64-byte aligned; null if memory is exhausted
  void (*release)(const Context&, void* data, size_t bytes);
  Status (*copy_in)(const Context&, void* to, const void* host, size_t bytes);
  Status (*copy_out)(const Context&, void* host, const void* from, size_t bytes);
  int64_t (*held_bytes)(const Context&);  // that belong to no tensor: caches and libraries
  OpTable ops;
  const CaptureTable* capture = nullptr;  // null: a captured step is a list of ops
  // Why `allocate` just returned null, if memory was not exhausted; else code none. Null: memory is always the reason.
  Status (*allocation_error)(const Context&) = nullptr;
  bool bf16x3 = false;  // takes `compute` bf16x3; otherwise it gets float32 instead

  // They are saved in the type of GEMM operands: two of 16 bits in an element.
  int64_t saved_columns(Activation activation, int64_t H, DType compute) const {
    const int64_t values = saved_values(activation, H, compute);
    return dtype_size(compute) == 2 ? (values + 1) / 2 : values;
  }
};

// Compiled in, for the instruction set that cpu/isa.h chooses. Throws Error(option) if ST_MOE_ISA names none.
const Backend& cpu_backend();

}  // namespace st_moe
