#pragma once
#include <cstddef>

// What the symbol table of the file that this code is in tells of kernels.
namespace simt {

const char* symbol_of(const void* kernel);  // mangled; null if unknown

// Whether a launch with so much dynamic shared memory is within the limits of the GPU: 48 KB with the kernel's own
// arrays, or what cudaFuncSetAttribute has allowed. Arrays of the functions that it calls are not counted.
bool shared_memory_fits(const void* kernel, size_t dynamic_bytes);

size_t shared_memory_optin();  // the most that cudaFuncSetAttribute allows on this architecture

}  // namespace simt
