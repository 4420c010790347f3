#pragma once
#include "emulator/runtime_api.h"

// What the rest of the runtime asks of errors and cards.
namespace simt {

cudaError_t driver();                   // success where there is one, and a card
cudaError_t report(cudaError_t error);  // the last error of this thread from now on, unless it is success

// Settings in the environment.
int64_t setting(const char* name, int64_t fallback);
bool is(const char* name, const char* value);
size_t card_bytes();

}  // namespace simt
