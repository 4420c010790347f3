#pragma once
#include <cstddef>
#include <cstdint>

// One thread pool and one caching allocator per process, shared by every environment. Compiled for the baseline.
namespace st_moe::cpu {

// Calls task(argument, i) once for each i in [0, count), on the calling thread and up to threads − 1 workers.
// Returns when all have run. Rethrows the first exception of a task after the others have ended.
// While another call uses the workers, or inside a task, the calling thread does all the work.
void pool_run(int threads, int64_t count, void (*task)(void* argument, int64_t i), void* argument);

// 64-byte aligned; null if memory is exhausted or bytes is absurd.
void* cache_allocate(size_t bytes);
void cache_release(void* data, size_t bytes);
size_t cached_bytes();                            // cached for reuse, not counted as live
void cache_trim();                                // returns cached memory to the system
int cache_trim_idle();                            // Backend::trim_idle
void set_memory_limit(size_t bytes);              // on what the process takes from the system, in use and cached
void describe_shortage(char* text, size_t size);  // what is known about memory that could not be allocated

void* scratch_allocate(size_t bytes);  // like cache_allocate, but throws Error(out_of_memory)
void scratch_release(void* data, size_t bytes);

}  // namespace st_moe::cpu
