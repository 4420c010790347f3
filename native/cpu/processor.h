#pragma once
#include <cstdint>

// What the CPU backend reads of the processor, once per process. It decides speed, never results: bits depend on the
// instruction set alone.
namespace st_moe::cpu {

int64_t l2_bytes();  // of one core; 1 MiB if unknown

}  // namespace st_moe::cpu
