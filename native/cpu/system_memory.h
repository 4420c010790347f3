#pragma once
#include <cstddef>

// Memory of the operating system; system_memory.cc has the differences between systems.
namespace st_moe::cpu {

size_t available_bytes();  // that the system can still provide; the largest number if unknown
size_t physical_bytes();   // 0 if unknown
void* aligned_allocate(size_t alignment, size_t bytes, bool huge_pages);  // null if memory is exhausted
void aligned_release(void* data);

}  // namespace st_moe::cpu
