#pragma once
#include <cstddef>
#include <cstdint>

#include "emulator/vector_types.h"

// Runs the blocks of a grid on SIMT_THREADS OS threads at once (default 1: one after the other), and the threads of a
// block as fibers of one OS thread. A fiber runs until it meets the others at a barrier or at a collective of its warp.
// A block that has begun keeps its OS thread until it ends, so blocks may wait for those that have begun before them,
// as a ticket tells that each takes from an atomic counter first. Whatever cannot work on a GPU (a collective without
// all the lanes of its mask, barriers on different lines, a deadlock) ends the process with a report. SIMT_ORDER=rev or
// rand:N changes the order of blocks and threads, so that a missing barrier shows in the results.
namespace simt {

constexpr int kLanes = 32, kMaxThreads = 1024;
constexpr size_t kMaxDynamicShared = 227 * 1024;

struct Cell {  // what one lane brings to a collective of its warp, or takes away
  uint64_t words[2];
};

// The lanes of `mask` in a collective; of the others nothing is looked at.
struct Exchange {
  unsigned mask;
  Cell in[kLanes], out[kLanes];
  int source[kLanes];  // lane to read in a shuffle
};

// What the last lane to come computes: `out` from `in`.
enum class Collective { barrier, shuffle, match };

[[noreturn]] void die(const char* what);

// Computes `out`, when all lanes of the mask have come.
void finish(Exchange& exchange, Collective kind);

// `body(argument)` is one thread of the kernel.
void run_grid(dim3 grid, dim3 block, size_t dynamic_shared, void (*body)(void*), void* argument);

// ---- called by the threads of a kernel

int lane();

void barrier(int line);

// Between blocks.
void fence();

// Collective::barrier orders memory; the others do not.
Cell collective(const char* name, int line, unsigned mask, Cell in, int source, Collective kind);

}  // namespace simt

// Dynamic shared memory: kernels declare `extern __shared__ __align__(16) unsigned char shared_memory[];`
extern thread_local __align__(16) unsigned char shared_memory[simt::kMaxDynamicShared];
