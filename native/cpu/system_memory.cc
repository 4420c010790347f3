#include "cpu/system_memory.h"

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/control_groups.h"
#include "cpu/system_files.h"

#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace st_moe::cpu {
namespace {

constexpr size_t kBlockAlignment = 64;

#if defined(__linux__)
int64_t least(int64_t a, int64_t b) {
  return a < 0 ? b : b < 0 ? a : a < b ? a : b;
}
#endif

#if defined(_WIN32)
MEMORYSTATUSEX memory_status() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof status;
  GlobalMemoryStatusEx(&status);
  return status;  // zeros if it is unknown
}
#else
// Large blocks are not from malloc: a program may have an allocator of its own in its place, and the one of Chromium,
// which Electron has, ends the process where a block is aligned to 2 MB or larger than 2 GB. Under ASan all are, for
// its checks.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kMapped = SIZE_MAX;
#else
constexpr size_t kMapped = kHugePage;
#endif

// Maps more than asked for, and gives back what is before the first huge page and behind the block.
void* map_huge_pages(size_t bytes) {
  const size_t mapped = bytes + kHugePage;
  void* const mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  const size_t before = -reinterpret_cast<uintptr_t>(mapping) % kHugePage, behind = kHugePage - before;
  char* const data = static_cast<char*>(mapping) + before;
  if (before > 0) munmap(mapping, before);
  munmap(data + bytes, behind);
#if defined(__linux__)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}
#endif

}  // namespace

// Linux, also under Wine, overcommits and kills the process that touches the memory; a request that cannot be met must
// be an error instead.
size_t available_bytes() {
#if defined(_WIN32)
  if (const uint64_t bytes = memory_status().ullAvailPageFile) return bytes;
#elif defined(__linux__)
  const int64_t free_kib = number_in("/proc/meminfo", "MemAvailable:"),
                swap_kib = number_in("/proc/meminfo", "SwapFree:");
  int64_t available = free_kib < 0 ? -1 : (free_kib + (swap_kib > 0 ? swap_kib : 0)) * 1024;
  // Never freed: a thread may allocate while the process ends.
  static const std::vector<std::string>& groups = *new std::vector<std::string>(control_groups("memory"));
  available = least(available, group_bytes(groups));
  if (available >= 0) return static_cast<size_t>(available);
#endif
  return SIZE_MAX;
}

#if defined(_WIN32)

size_t physical_bytes() {
  return static_cast<size_t>(memory_status().ullTotalPhys);
}

void* system_allocate(size_t bytes) {
  return _aligned_malloc(bytes, kBlockAlignment);
}

void system_release(void* data, size_t) {
  _aligned_free(data);
}

#else

size_t physical_bytes() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? static_cast<size_t>(pages) * static_cast<size_t>(page) : 0;
}

void* system_allocate(size_t bytes) {
  if (bytes >= kMapped) return map_huge_pages(bytes);
  void* data = nullptr;
  return posix_memalign(&data, kBlockAlignment, bytes) == 0 ? data : nullptr;
}

void system_release(void* data, size_t bytes) {
  if (bytes >= kMapped) {
    munmap(data, bytes);
  } else {
    std::free(data);
  }
}

#endif

}  // namespace st_moe::cpu
