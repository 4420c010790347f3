#pragma once
#include <cstddef>
#include <cstdint>

#include "core/op_args.h"
#include "core/optimizers.h"

// The interface between the binding and a backend: one table of memory functions and ops for each device kind.
// Kernels know pointers, sizes and a stream. Everything here is plain data, so a backend may live in a plugin.
namespace st_moe {

constexpr uint32_t kBackendAbi = 6;

// ---- the table ----------------------------------------------------------------------------------------------

struct OpTable {
#define OP(Name, name) Op<Name##Args> name;
#include "core/op_list.inc"
};

// ---- captured steps ---------------------------------------------------------------------------------------------

// What changes from one replay of a CUDA graph to the next: the numbers of one draw, or the factors of one parameter's
// update. During capture, `step` of such an op is the index, from 1, of its StepArgs in the list that replay gets.
struct StepArgs {
  uint64_t seed, step;
  FactorList factors;
};

// From begin to end, ops are recorded and do not run, memory comes from what the step will own, and copies to and from
// the host are an Error. One step at a time on a stream.
struct CaptureTable {
  Status (*begin)(const Context&);
  void (*aside)(const Context&, bool on);  // between on and off ops run at once and are not recorded
  // *step owns the memory that was allocated, *bytes of it, also where the capture is given up (keep = 0) or fails.
  Status (*end)(const Context&, int32_t keep, void** step, size_t* bytes);
  Status (*replay)(const Context&, void* step, const StepArgs* args, int64_t count);
  void (*release)(const Context&, void* step);
};

struct Backend {
  uint32_t abi;            // kBackendAbi
  const char* name;        // "cpu", "cuda"
  const char* variant;     // instruction set or card
  int32_t fixed_slots;     // 1: expert_ffn computes every slot, so that shapes do not depend on the routing
  int32_t saved_multiple;  // columns of what expert_ffn saves are rounded up to a multiple of this
  void* (*allocate)(const Context&, size_t bytes);  // 64-byte aligned; null when memory is exhausted
  void (*release)(const Context&, void* data, size_t bytes);
  Status (*copy_in)(const Context&, void* to, const void* host, size_t bytes);
  Status (*copy_out)(const Context&, void* host, const void* from, size_t bytes);
  int64_t (*held_bytes)(const Context&);  // that belong to no tensor: kept for re-use, or of libraries
  OpTable ops;
  const CaptureTable* capture = nullptr;  // null: steps cannot be captured
  // Why `allocate` has just returned null, if it was not for want of memory; code none if it was. Null: it always is.
  Status (*allocation_error)(const Context&) = nullptr;

  int64_t saved_columns(int64_t columns) const {
    return (columns + saved_multiple - 1) / saved_multiple * saved_multiple;
  }
};

// Compiled in. Chooses the widest instruction set that the machine has.
const Backend& cpu_backend();

}  // namespace st_moe
