#pragma once
#include <cstdint>

// What the CPU backend reads of the processor, once per process. It decides speed and the default instruction set, on
// which alone the bits of results depend.
namespace st_moe::cpu {

// The L2 cache of one core, and one of its ways: addresses that far apart share a set. 1 MiB and 128 KiB if unknown.
int64_t l2_bytes();
int64_t l2_way_bytes();

// CPUs that the calling thread may use: the least of its affinity mask and of the quotas of its control groups; at
// least 1.
int usable_cpus();

// Whether the processor and the system have the instructions of the x86-64 levels v3 and v4 (the x86-64 psABI, §3.1.1).
bool has_v3();
bool has_v4();

// And bf16 dot products: AVX512_BF16 with v4, or FEAT_BF16 of arm64.
bool has_bf16();

// Whether the processor has AMX for bf16 and the system permits it. Linux from 5.16 on does, and from then on keeps
// another 8 KiB for each thread that uses it.
bool may_use_amx();

// How many multiply-adds the bf16 dot products (VDPBF16PS, BFDOT) do in the time of one by float32 FMA, measured in
// about 0.02 ms; 0 without the instruction. About 2 on Zen 4 and 5, 0.5 on some Intel processors.
double bf16_dot_speed();

}  // namespace st_moe::cpu
