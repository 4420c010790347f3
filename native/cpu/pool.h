#pragma once
#include <cstddef>
#include <cstdint>

// One thread pool and one caching allocator a process, shared by every environment. Compiled for the baseline.
namespace st_moe::cpu {

// Calls task(argument, i) once for each i in [0, count), on the calling thread and up to threads − 1 workers.
// Returns when all have run. The first exception of a task is rethrown here after the others have ended.
// While another call holds the workers, or from inside a task, the calling thread does it all alone.
void pool_run(int threads, int64_t count, void (*task)(void* argument, int64_t i), void* argument);

// 64-byte aligned; null when memory is exhausted or bytes is absurd.
void* cache_allocate(size_t bytes);
void cache_release(void* data, size_t bytes);
size_t cached_bytes();  // held for re-use, not counted as live
void cache_trim();      // gives what is cached back to the system

void* scratch_allocate(size_t bytes);  // as cache_allocate, but throws Error(out_of_memory)
void scratch_release(void* data, size_t bytes);

}  // namespace st_moe::cpu
