#pragma once
#include <cstddef>
#include <cstdint>

#include "emulator/vector_types.h"

// What a launch reads, writes and computes, counted in a build with SIMT_COUNT, in which the compiler calls the
// emulator at every access of a kernel to memory. If SIMT_COUNTS names a file, each launch, GEMM, copy and fill adds a
// line of JSON to it; another name starts another file.
//
// The lanes of a warp that access memory at the same place of the code, each for the n-th time, are one access of the
// warp: it takes the 32-byte sectors that it touches, and of shared memory one wavefront for each 128 bytes, or more
// if different words are in the same bank. What the lanes ask for is counted once if they ask for the same. What a GPU
// reads from its memory is between what it must (each sector once, the "distinct" bytes) and the sum over all accesses.
//
// If GCC has the headers of plugins, arithmetic too. FLOPs are the additions, subtractions, multiplications and
// divisions that are left when the compiler has optimized, and one for a function of the C library. Of them, the
// "issued" in float32 and in float64: a product and the sum that needs it are one, as on a GPU. Where that has an
// instruction for what formulas.h computes step by step, such as e^x, it issues fewer.
//
// A large launch runs only some of its blocks, spread over the grid, until SIMT_ENOUGH accesses, and the numbers are
// scaled; a large copy or fill does not run at all, nor does a GEMM of more than SIMT_ENOUGH_PRODUCTS multiplications.
// So sizes can be counted that would take days: memory that nothing touches takes no space.
//
// The "reads" of a launch are, for each allocation, the distinct bytes and those of all accesses. The "longest" is how
// many times one of its threads reads memory, at most.
namespace simt {

#if defined(SIMT_COUNT)
constexpr bool kCounting = true;
#else
constexpr bool kCounting = false;
#endif

// Addresses for device memory, all zeros. Null: there is none.
void* reserve(size_t bytes);
void release_reserved(void* memory, size_t bytes);

// Around one launch, by the OS thread that runs it.
void begin_count(const void* kernel, dim3 grid, dim3 block);
void end_count();

// The block of step `step` of the launch, or false if enough have run.
bool next_block(uint64_t step, uint64_t blocks, uint64_t* block);
void end_block(int threads);
void count_barrier();
void count_access(const volatile void* at, int bytes, bool write, const void* place);  // place: of the code

void count_gemm(int m, int n, int k, int count, const char* types, double bytes);
void count_groups(size_t groups, double flops, const char* types, double bytes);  // one GEMM of many sizes
void count_bytes(const char* what, double read, double written);

// Whether a copy of so many bytes is only counted, or a GEMM of so many multiplications.
bool only_counted(double bytes);
bool only_counted_products(double products);

// Index of the CUDA thread that runs, in its block; −1 outside kernels.
int running_thread();

}  // namespace simt
