#pragma once
#include <cstddef>
#include <cstdint>

#include "emulator/vector_types.h"

// A launch, as grid.cc shares its blocks out to OS threads and engine.cc runs each of them.
namespace simt {

struct Grid {
  dim3 size, block;
  size_t dynamic_shared;
  void (*body)(void*);  // one thread of the kernel
  void* argument;

  uint64_t blocks() const { return uint64_t{size.x} * size.y * size.z; }
};

// By the OS thread of the caller, whose shared memory it is.
void run_block(const Grid& grid, uint64_t index);

// SIMT_RACES=blocks, in a build with ThreadSanitizer: it sees a block as one thread, and looks for races between
// blocks. Else it sees each CUDA thread, and looks for races within a block, too; all of both would need more threads
// than it can tell apart.
bool races_between_blocks();

}  // namespace simt
