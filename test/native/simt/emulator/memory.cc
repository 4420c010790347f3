#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#include "emulator/counting.h"
#include "emulator/engine.h"
#include "emulator/fault.h"
#include "emulator/runtime_device.h"
#include "emulator/sanitizers.h"
#include "emulator/streams.h"

// Memory of the host and of the device, and copies between them.
namespace simt {
namespace {

constexpr size_t kTailBytes = 64;  // after each allocation, checked when it is freed
constexpr char kTail = 0x5a;
constexpr uint32_t kPoison = 0x7ff97ff9;  // NaN in every floating-point format, and no index that a test would use

struct Block {
  size_t bytes;  // of the allocation
  size_t used;   // of them, as far as a cache in front of the driver says
  int device;    // kHost: pinned memory of the host
};
constexpr int kHost = -1;

struct Memory {
  std::mutex mutex;
  std::map<const char*, Block> blocks;
  Trigger full{"SIMT_FULL_AT"};
};
Memory& memory() {
  static auto* const instance = new Memory;
  return *instance;
}

void poison(void* pointer, size_t bytes) {
  auto* to = static_cast<char*>(pointer);
  for (size_t i = 0; i + 4 <= bytes; i += 4) std::memcpy(to + i, &kPoison, 4);
  if (bytes % 4) std::memcpy(to + bytes / 4 * 4, &kPoison, bytes % 4);
}

void begin_tail(char* tail) {
  std::memset(tail, kTail, kTailBytes);
#if defined(SIMT_ASAN)  // sees reads too
  __asan_poison_memory_region(tail, kTailBytes);
#endif
}

void end_tail(char* tail) {
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(tail, kTailBytes);
#endif
  for (size_t i = 0; i < kTailBytes; ++i)
    if (tail[i] != kTail) die("memory was written past its end, found when it was freed");
}

cudaError_t allocate(void** pointer, size_t bytes, int place) {
  const bool device = place != kHost;
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  Memory& m = memory();
  std::lock_guard<std::mutex> lock(m.mutex);
  if (bytes != 0 && device && m.full.reached()) return report(cudaErrorMemoryAllocation);
  if (bytes == 0) return report(cudaErrorInvalidValue);
  if (bytes > gpu_bytes() || (device && live_bytes() + bytes > gpu_bytes())) return report(cudaErrorMemoryAllocation);
  const size_t size = (bytes + kTailBytes + 255) / 256 * 256;
  const bool reserved = kCounting && device;  // zeros, that take no space until something is written
  auto* data = static_cast<char*>(reserved ? reserve(size) : std::aligned_alloc(256, size));
  if (!data) return report(cudaErrorMemoryAllocation);
  if (!reserved) poison(data, bytes);
  begin_tail(data + bytes);
  m.blocks[data] = {bytes, bytes, place};
  if (device) add_live(1, static_cast<int64_t>(bytes));
  *pointer = data;
  return cudaSuccess;
}

cudaError_t release(void* pointer, bool device) {
  if (!pointer) return cudaSuccess;
  Memory& m = memory();
  std::lock_guard<std::mutex> lock(m.mutex);
  const auto found = m.blocks.find(static_cast<char*>(pointer));
  if (found == m.blocks.end() || (found->second.device != kHost) != device) return report(cudaErrorInvalidValue);
  const size_t bytes = found->second.bytes;
  expect_unused(pointer, bytes);
  end_tail(static_cast<char*>(pointer) + found->second.used);
  m.blocks.erase(found);
  if (device) add_live(-1, -static_cast<int64_t>(bytes));
  if (kCounting && device) {
    release_reserved(pointer, bytes);
  } else {
    poison(pointer, bytes);
    std::free(pointer);
  }
  return report(usable());
}

void use_from_now_on(void* pointer, size_t bytes, uint64_t earlier) {
  if (kCounting) return;
  Memory& m = memory();
  std::lock_guard<std::mutex> lock(m.mutex);
  Block& block = m.blocks.at(static_cast<char*>(pointer));
  expect_unused(pointer, block.bytes, earlier);
  end_tail(static_cast<char*>(pointer) + block.used);
  poison(pointer, block.bytes);
  block.used = bytes;
  begin_tail(static_cast<char*>(pointer) + bytes);
}

// The device that memory belongs to, kHost if it is pinned, and kPageable if it comes from somewhere else.
constexpr int kPageable = -2;
int place_of(const void* pointer) {
  Memory& m = memory();
  std::lock_guard<std::mutex> lock(m.mutex);
  auto after = m.blocks.upper_bound(static_cast<const char*>(pointer));
  if (after == m.blocks.begin()) return kPageable;
  --after;
  const bool within = static_cast<const char*>(pointer) < after->first + after->second.bytes;
  return within ? after->second.device : kPageable;
}

int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

}  // namespace

bool is_device_memory(const void* pointer) {
  return place_of(pointer) >= 0;
}

// A cache hides from the driver what is in use. It says so here, and the same mistakes are found as without it.
void use(void* pointer, size_t bytes, cudaStream_t stream) {
  enqueue(stream, [pointer, bytes, earlier = operations()] { use_from_now_on(pointer, bytes, earlier); });
}

void keep(void* pointer, cudaStream_t stream) {
  use(pointer, 0, stream);
}

bool reuse(void* pointer, size_t bytes, cudaStream_t stream) {
  {
    std::lock_guard<std::mutex> lock(memory().mutex);
    if (memory().full.reached()) return false;
  }
  use(pointer, bytes, stream);
  return true;
}

bool is_pinned_memory(const void* pointer) {
  return place_of(pointer) == kHost;
}

}  // namespace simt

static std::atomic<bool> trimmed{false};
bool simt::pool_holds_all() {
  if (!is("SIMT_POOL", "full")) trimmed = false;
  return is("SIMT_POOL", "full") && !trimmed;
}

using namespace simt;

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return allocate(pointer, bytes, current_device());
}
cudaError_t cudaFree(void* pointer) {
  drain_device();  // it waits for the device
  return release(pointer, true);
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  // Memory queued to be freed belongs to the pool: it counts when the GPU is full.
  const int device = queue_of(stream).device;
  const cudaError_t status = allocate(pointer, bytes, device);
  if (status != cudaErrorMemoryAllocation) return status;
  drain(queue_of(stream));
  const cudaError_t again = allocate(pointer, bytes, device);
  if (again == cudaSuccess) cudaGetLastError();
  return again;
}

cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  if (!is_device_memory(pointer)) return report(cudaErrorInvalidValue);
  enqueue(stream, [pointer] { release(pointer, true); });
  return report(usable());
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return allocate(pointer, bytes, kHost);
}
cudaError_t cudaFreeHost(void* pointer) {
  return release(pointer, false);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = gpu_bytes();
  *free_bytes = *total_bytes - live_bytes();
  return report(usable());
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;
  return report(usable());
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return report(usable());
}
// The pool itself keeps nothing.
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  *static_cast<uint64_t*>(value) = live_bytes();
  return report(usable());
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  trimmed = true;
  return report(usable());
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  if (bytes == 0) return cudaSuccess;
  const int source = place_of(from), target = place_of(to);
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  if (from_device != (source >= 0) || to_device != (target >= 0)) return report(cudaErrorInvalidValue);
  if ((source == kPageable || target == kPageable) && spoils_capture(stream))
    return report(cudaErrorStreamCaptureUnsupported);
  count(&Counters::copies);
  // Of pageable memory the values are read before the call returns. Whether it also waits is not promised.
  std::shared_ptr<char[]> staged;
  if (source == kPageable) {
    staged.reset(new char[bytes]);
    std::memcpy(staged.get(), from, bytes);
  }
  const auto copy = [=] {
    const auto amount = static_cast<double>(bytes);
    if constexpr (kCounting) count_bytes("copy", from_device ? amount : 0, to_device ? amount : 0);
    if (kCounting && from_device && to_device && only_counted(amount)) return;
    std::memcpy(to, staged ? staged.get() : from, bytes);
  };
  enqueue(stream, copy, staged ? std::vector<const void*>{to} : std::vector<const void*>{from, to});
  return target == kPageable ? cudaStreamSynchronize(stream) : cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t bytes,
                                cudaStream_t stream) {
  if (place_of(to) != to_device || place_of(from) != from_device) return report(cudaErrorInvalidValue);
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  if (bytes == 0) return cudaSuccess;
  if (!is_device_memory(to)) return report(cudaErrorInvalidValue);
  const auto fill = [=] {
    const auto amount = static_cast<double>(bytes);
    if constexpr (kCounting) count_bytes("fill", 0, amount);
    if (kCounting && only_counted(amount)) return;
    std::memset(to, value, bytes);
  };
  enqueue(stream, fill, {to});
  return cudaSuccess;
}
