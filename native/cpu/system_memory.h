#pragma once
#include <cstddef>

// Memory as the system gives it; what differs between systems is in system_memory.cc.
namespace st_moe::cpu {

size_t available_bytes();  // that the system can still give; the largest number where it does not say
size_t physical_bytes();   // 0 where it does not say
void* aligned_allocate(size_t alignment, size_t bytes, bool huge_pages);  // null when memory is exhausted
void aligned_release(void* data);

}  // namespace st_moe::cpu
