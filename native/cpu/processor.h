#pragma once
#include <cstdint>

// What the CPU backend reads of the processor, once per process. It decides speed, never results: bits depend on the
// instruction set alone.
namespace st_moe::cpu {

int64_t l2_bytes();  // of one core; 1 MiB if unknown

// Whether ST_MOE_AMX=1 asks for AMX, the processor has it for bf16, and the system permits it. Not by default, since it
// has run by emulated instructions only. Linux from 5.16 on does, and from then on keeps
// another 8 KiB for each thread that uses it.
bool may_use_amx();

}  // namespace st_moe::cpu
