#pragma once
#include <cstddef>

// Memory of the operating system; system_memory.cc has the differences between systems.
namespace st_moe::cpu {

size_t available_bytes();  // that the system can still provide; the largest number if unknown
size_t physical_bytes();   // 0 if unknown

constexpr size_t kHugePage = size_t{2} << 20;
void* system_allocate(size_t bytes);  // null if memory is exhausted; aligned to 64 bytes; large blocks on huge pages
void system_release(void* data, size_t bytes);

}  // namespace st_moe::cpu
