#include "cuda/memory.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <mutex>
#include <new>
#include <vector>

#include "cuda/capture.h"
#include "cuda/stream.h"

namespace st_moe::cuda {

constexpr size_t kGrain = 512;  // blocks are multiples of it
constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

struct DevicePool {
  int device;
  std::mutex mutex;  // of all that follows, and of what its environments keep
  cudaMemPool_t pool = nullptr;
  std::vector<DeviceMemory*> environments;
  size_t taken_bytes = 0;  // from the pool: in use and kept
  size_t limit = kNoLimit;

  explicit DevicePool(int index) : device(index) {}
  size_t room() const { return limit > taken_bytes ? limit - taken_bytes : 0; }
};

// One per device, never freed, because environments of several threads share them.
static DevicePool& pool_of(int device) {
  static std::mutex mutex;
  static auto* const pools = new std::map<int, DevicePool*>;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = pools->find(device);
  if (found == pools->end()) found = pools->emplace(device, new DevicePool(device)).first;
  return *found->second;
}

DeviceMemory::DeviceMemory(int device, cudaStream_t stream) : pool_(pool_of(device)), stream_(stream) {
  std::lock_guard<std::mutex> lock(pool_.mutex);
  check(cudaDeviceGetDefaultMemPool(&pool_.pool, device), "memory pool");
  uint64_t keep = UINT64_MAX;  // what is given back stays in the pool: returning it would synchronize
  check(cudaMemPoolSetAttribute(pool_.pool, cudaMemPoolAttrReleaseThreshold, &keep), "memory pool");
  pool_.environments.push_back(this);
}

DeviceMemory::~DeviceMemory() {
  std::lock_guard<std::mutex> lock(pool_.mutex);
  give_back();
  auto& all = pool_.environments;
  all.erase(std::find(all.begin(), all.end(), this));
}

void DeviceMemory::follow(cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(pool_.mutex);
  stream_ = stream;
}

// The smallest block that is large enough, unless more than an eighth of it would be wasted.
DeviceMemory::Kept::iterator DeviceMemory::fitting(size_t bytes) {
  const auto found = kept_.lower_bound(bytes);
  return found == kept_.end() || found->first > bytes + std::max(bytes / 8, kGrain) ? kept_.end() : found;
}

cudaError_t DeviceMemory::allocate(size_t bytes, void** data) noexcept try {
  [[maybe_unused]] const size_t asked = std::max<size_t>(bytes, 1);
  bytes = (asked + kGrain - 1) / kGrain * kGrain;
  std::lock_guard<std::mutex> lock(pool_.mutex);
  if (const auto found = fitting(bytes); found != kept_.end()) {
#if defined(ST_MOE_SIMT)
    if (!simt::reuse(found->second, asked, stream_)) return cudaErrorMemoryAllocation;
#endif
    used_.emplace(found->second, found->first);
    *data = found->second;
    kept_bytes_ -= found->first;
    kept_.erase(found);
    return cudaSuccess;
  }
  emptied_bytes_ = 0;
  if (bytes > pool_.room())
    if (const cudaError_t status = trim_locked(); status != cudaSuccess) return status;
  if (bytes > pool_.room()) return cudaErrorMemoryAllocation;
  cudaError_t status = cudaMallocAsync(data, bytes, stream_);
  if (status == cudaErrorMemoryAllocation) {
    status = trim_locked();
    if (status == cudaSuccess) status = cudaMallocAsync(data, bytes, stream_);
  }
  if (status != cudaSuccess) return status;
  pool_.taken_bytes += bytes;
  try {
    used_.emplace(*data, bytes);
  } catch (const std::bad_alloc&) {
    pool_.taken_bytes -= bytes;
    cudaFreeAsync(*data, stream_);
    return cudaErrorMemoryAllocation;
  }
#if defined(ST_MOE_SIMT)
  simt::use(*data, asked, stream_);
#endif
  return cudaSuccess;
} catch (const std::bad_alloc&) {
  return cudaErrorMemoryAllocation;
}

void DeviceMemory::release(void* data) noexcept {
  std::lock_guard<std::mutex> lock(pool_.mutex);
  const auto found = used_.find(data);
  if (found == used_.end()) return;
  const size_t bytes = found->second;
  used_.erase(found);
  try {
    kept_.emplace(bytes, data);
  } catch (const std::bad_alloc&) {
    pool_.taken_bytes -= bytes;
    cudaFreeAsync(data, stream_);
    return;
  }
  kept_bytes_ += bytes;
#if defined(ST_MOE_SIMT)
  simt::keep(data, stream_);
#endif
}

void DeviceMemory::give_back() noexcept {
  for (const auto& [bytes, data] : kept_)
    if (cudaFreeAsync(data, stream_) != cudaSuccess) cudaGetLastError();
  pool_.taken_bytes -= kept_bytes_;
  kept_.clear();
  kept_bytes_ = 0;
}

cudaError_t DeviceMemory::trim_locked() noexcept {
  cudaGetLastError();
  ++waits_;
  for (DeviceMemory* environment : pool_.environments) {
    emptied_bytes_ += environment->kept_bytes_;
    environment->give_back();
  }
  const cudaError_t status = wait_for_device(pool_.device, stream_);
  return status == cudaSuccess ? cudaMemPoolTrimTo(pool_.pool, 0) : status;
}

cudaError_t DeviceMemory::trim() noexcept {
  std::lock_guard<std::mutex> lock(pool_.mutex);
  return trim_locked();
}

void DeviceMemory::set_limit(size_t bytes) noexcept {
  std::lock_guard<std::mutex> lock(pool_.mutex);
  pool_.limit = bytes;
}

int64_t DeviceMemory::kept_bytes() const {
  std::lock_guard<std::mutex> lock(pool_.mutex);
  uint64_t reserved = 0, used = 0;
  cudaMemPoolGetAttribute(pool_.pool, cudaMemPoolAttrReservedMemCurrent, &reserved);
  cudaMemPoolGetAttribute(pool_.pool, cudaMemPoolAttrUsedMemCurrent, &used);
  return static_cast<int64_t>(kept_bytes_ + (reserved > used ? reserved - used : 0));
}

std::string DeviceMemory::shortage() const {
  std::lock_guard<std::mutex> lock(pool_.mutex);
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  char text[240];
  std::snprintf(text, sizeof text,
                "of the GPU %zu of %zu bytes are free; this process uses %zu, after its cache of %zu was emptied",
                free_bytes, total_bytes, pool_.taken_bytes, emptied_bytes_);
  return text + (pool_.limit == kNoLimit ? "" : "; its limit is " + std::to_string(pool_.limit));
}

}  // namespace st_moe::cuda
