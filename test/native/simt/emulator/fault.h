#pragma once
#include "emulator/runtime_api.h"

// A kernel that faults ends its device: from then on every call of the runtime returns the same error, nothing that is
// queued runs, and nothing is written.
namespace simt {

bool fault_is_due();  // counts one launch or GEMM
void begin_fault(int device);

cudaError_t fault_of(int device);  // success: none
cudaError_t usable();              // the fault of the current device

}  // namespace simt
