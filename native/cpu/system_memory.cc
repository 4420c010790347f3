#include "cpu/system_memory.h"

#include <cstdint>
#include <cstdlib>

#include "cpu/system_files.h"

#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
#else
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace st_moe::cpu {
#if defined(__linux__)
namespace {

int64_t least(int64_t a, int64_t b) {
  return a < 0 ? b : b < 0 ? a : a < b ? a : b;
}

// Free memory of a control group, including its reclaimable file cache; −1 without a limit.
int64_t left_in_group(const char* limit_path, const char* usage_path, const char* stat_path, const char* cache_key) {
  const int64_t limit = number_in(limit_path, ""), usage = number_in(usage_path, "");
  if (limit < 0 || usage < 0) return -1;
  const int64_t cache = number_in(stat_path, cache_key), used = usage - (cache > 0 ? cache : 0);
  return limit > used ? limit - used : 0;
}

}  // namespace
#endif

// Linux overcommits, and kills the process that touches the memory; a request that cannot be met must be an error
// instead.
size_t available_bytes() {
#if defined(__linux__)
  const int64_t free_kib = number_in("/proc/meminfo", "MemAvailable:"),
                swap_kib = number_in("/proc/meminfo", "SwapFree:");
  int64_t available = free_kib < 0 ? -1 : (free_kib + (swap_kib > 0 ? swap_kib : 0)) * 1024;
  available = least(available, left_in_group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                                             "/sys/fs/cgroup/memory.stat", "inactive_file "));
  available = least(available, left_in_group("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                             "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                             "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file "));
  if (available >= 0) return static_cast<size_t>(available);
#endif
  return SIZE_MAX;
}

#if defined(_WIN32)

size_t physical_bytes() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? static_cast<size_t>(status.ullTotalPhys) : 0;
}

void* aligned_allocate(size_t alignment, size_t bytes, bool) {
  return _aligned_malloc(bytes, alignment);
}

void aligned_release(void* data) {
  _aligned_free(data);
}

#else

size_t physical_bytes() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? static_cast<size_t>(pages) * static_cast<size_t>(page) : 0;
}

void* aligned_allocate(size_t alignment, size_t bytes, [[maybe_unused]] bool huge) {
  void* data = nullptr;
  if (posix_memalign(&data, alignment, bytes) != 0) return nullptr;
#if defined(__linux__)
  if (huge) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

void aligned_release(void* data) {
  std::free(data);
}

#endif

}  // namespace st_moe::cpu
