#include "emulator/runtime_api.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "emulator/engine.h"
#include "emulator/runtime_device.h"
#include "emulator/sanitizers.h"

struct CUgraph_st {
  std::vector<std::function<void()>> nodes;
  bool spoilt = false;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<std::function<void()>>> nodes;
};
struct CUstream_st {
  std::mutex mutex;
  std::deque<std::function<void()>> queue;
  std::unique_ptr<CUgraph_st> capture;  // touched by the stream's own thread alone
};
struct CUevent_st {
  cudaStream_t stream = nullptr;
  bool reached = true;
};

namespace simt {
namespace {

constexpr size_t kQueueLimit = 256;
constexpr size_t kTailBytes = 64;         // after each allocation, checked when it is freed
constexpr uint32_t kPoison = 0x7ff97ff9;  // NaN in every floating-point format, and no index that a test would use

struct Memory {
  size_t bytes;
  bool device;
};

struct Process {
  std::mutex mutex;
  std::map<const char*, Memory> memory;
  Counters counters{};
  CUstream_st null_stream;
};
Process& process() {
  static auto* const instance = new Process;
  return *instance;
}

CUstream_st& queue_of(cudaStream_t stream) {
  return stream ? *stream : process().null_stream;
}

// What cannot be recorded ends the capture of a stream, if there is one.
bool spoils_capture(cudaStream_t stream) {
  CUgraph_st* capture = queue_of(stream).capture.get();
  if (capture) capture->spoilt = true;
  return capture != nullptr;
}

// One operation, in order. The mutex is not held while it runs: it may wait for an event of another stream.
bool run_one(CUstream_st& stream) {
  std::function<void()> work;
  {
    std::lock_guard<std::mutex> lock(stream.mutex);
    if (stream.queue.empty()) return false;
    work = std::move(stream.queue.front());
    stream.queue.pop_front();
  }
  work();
  return true;
}

void drain(CUstream_st& stream) {
  while (run_one(stream)) {
  }
}

// Where SIMT_TRACE names a file, a line for each event, for programs that cannot call simt_counters.
void trace(int64_t Counters::* counter) {
  static std::FILE* const file = std::getenv("SIMT_TRACE") ? std::fopen(std::getenv("SIMT_TRACE"), "a") : nullptr;
  if (!file) return;
  const char* name = counter == &Counters::launches           ? "launch"
                     : counter == &Counters::products         ? "product"
                     : counter == &Counters::copies           ? "copy"
                     : counter == &Counters::synchronisations ? "wait"
                                                              : "graph";
  std::fprintf(file, "%s\n", name);
  std::fflush(file);
}

void count(int64_t Counters::* counter) {
  std::lock_guard<std::mutex> lock(process().mutex);
  ++(process().counters.*counter);
  trace(counter);
}

void poison(void* pointer, size_t bytes) {
  auto* to = static_cast<char*>(pointer);
  for (size_t i = 0; i + 4 <= bytes; i += 4) std::memcpy(to + i, &kPoison, 4);
  if (bytes % 4) std::memcpy(to + bytes / 4 * 4, &kPoison, bytes % 4);
}

// Called with the mutex held.
bool is_full() {
  static std::string last;
  static int64_t asked = 0;
  const char* text = std::getenv("SIMT_FULL_AT");
  if (std::exchange(last, text ? text : "") != last) asked = 0;
  return !last.empty() && ++asked >= std::strtoll(last.c_str(), nullptr, 10);
}

cudaError_t allocate(void** pointer, size_t bytes, bool device) {
  Process& p = process();
  std::lock_guard<std::mutex> lock(p.mutex);
  if (bytes != 0 && device && is_full()) return report(cudaErrorMemoryAllocation);
  if (bytes == 0) return report(cudaErrorInvalidValue);
  if (bytes > card_bytes() || (device && static_cast<size_t>(p.counters.live_bytes) + bytes > card_bytes()))
    return report(cudaErrorMemoryAllocation);
  auto* data = static_cast<char*>(std::aligned_alloc(256, (bytes + kTailBytes + 255) / 256 * 256));
  if (!data) return report(cudaErrorMemoryAllocation);
  poison(data, bytes);
  std::memset(data + bytes, 0x5a, kTailBytes);
#if defined(SIMT_ASAN)  // sees reads too
  __asan_poison_memory_region(data + bytes, kTailBytes);
#endif
  p.memory[data] = {bytes, device};
  if (device) {
    ++p.counters.allocations;
    ++p.counters.live_allocations;
    p.counters.live_bytes += static_cast<int64_t>(bytes);
  }
  *pointer = data;
  return cudaSuccess;
}

cudaError_t release(void* pointer, bool device) {
  if (!pointer) return cudaSuccess;
  Process& p = process();
  std::lock_guard<std::mutex> lock(p.mutex);
  const auto found = p.memory.find(static_cast<char*>(pointer));
  if (found == p.memory.end() || found->second.device != device) return report(cudaErrorInvalidValue);
  const size_t bytes = found->second.bytes;
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(static_cast<char*>(pointer) + bytes, kTailBytes);
#endif
  for (size_t i = 0; i < kTailBytes; ++i)
    if (static_cast<char*>(pointer)[bytes + i] != 0x5a) die("memory was written past its end, found when it was freed");
  poison(pointer, bytes);
  p.memory.erase(found);
  if (device) {
    --p.counters.live_allocations;
    p.counters.live_bytes -= static_cast<int64_t>(bytes);
  }
  std::free(pointer);
  return cudaSuccess;
}

enum class Place { pageable, pinned, device };

Place place_of(const void* pointer) {
  Process& p = process();
  std::lock_guard<std::mutex> lock(p.mutex);
  auto after = p.memory.upper_bound(static_cast<const char*>(pointer));
  if (after == p.memory.begin()) return Place::pageable;
  --after;
  if (static_cast<const char*>(pointer) >= after->first + after->second.bytes) return Place::pageable;
  return after->second.device ? Place::device : Place::pinned;
}

}  // namespace

void enqueue(cudaStream_t stream, std::function<void()> work) {
  static const bool eager = is("SIMT_STREAMS", "eager");
  CUstream_st& queue = queue_of(stream);
  if (queue.capture) return queue.capture->nodes.push_back(std::move(work));
  size_t length;
  {
    std::lock_guard<std::mutex> lock(queue.mutex);
    queue.queue.push_back(std::move(work));
    length = queue.queue.size();
  }
  if (eager || !stream || length > kQueueLimit) drain(queue);
}

cudaError_t launch(const cudaLaunchConfig_t& config, std::function<void()> thread) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || config.dynamicSmemBytes > kMaxDynamicShared)
    return report(cudaErrorInvalidConfiguration);
  if (config.numAttrs) return report(cudaErrorNotSupported);
  count(&Counters::launches);
  const size_t shared = config.dynamicSmemBytes;
  enqueue(config.stream, [=] {
    auto body = thread;
    run_grid(grid, block, shared, [](void* fn) { (*static_cast<std::function<void()>*>(fn))(); }, &body);
  });
  return cudaSuccess;
}

bool is_device_memory(const void* pointer) {
  return place_of(pointer) == Place::device;
}
void count_product() {
  count(&Counters::products);
}

void simt_counters(Counters* counters) {
  std::lock_guard<std::mutex> lock(process().mutex);
  *counters = process().counters;
}

}  // namespace simt

using namespace simt;

cudaError_t cudaDeviceSynchronize() {
  drain(process().null_stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (driver() != cudaSuccess) return report(driver());
  *stream = new CUstream_st;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  drain(*stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  count(&Counters::synchronisations);
  drain(queue_of(stream));
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  return run_one(queue_of(stream)) ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  enqueue(stream, [event] {
    while (!event->reached && run_one(queue_of(event->stream))) {
    }
  });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (!stream || stream->capture) return report(cudaErrorStreamCaptureUnsupported);
  if (mode != cudaStreamCaptureModeRelaxed) return report(cudaErrorNotSupported);
  stream->capture = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream || !stream->capture) return report(cudaErrorStreamCaptureUnmatched);
  const std::unique_ptr<CUgraph_st> capture = std::move(stream->capture);
  if (capture->spoilt) return report(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{std::move(capture->nodes)};
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{std::make_shared<const std::vector<std::function<void()>>>(graph->nodes)};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  count(&Counters::graph_launches);
  enqueue(stream, [nodes = exec->nodes] {
    for (const auto& node : *nodes) node();
  });
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (!event->reached) drain(queue_of(event->stream));
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  event->stream = stream;
  event->reached = false;
  enqueue(stream, [event] { event->reached = true; });
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  count(&Counters::synchronisations);
  while (!event->reached && run_one(queue_of(event->stream))) {
  }
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->reached) return cudaSuccess;
  run_one(queue_of(event->stream));
  return cudaErrorNotReady;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return allocate(pointer, bytes, true);
}
cudaError_t cudaFree(void* pointer) {
  return release(pointer, true);
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  // Memory that waits in the queue to be freed is the pool's own: it counts when the card is full.
  const cudaError_t status = allocate(pointer, bytes, true);
  if (status != cudaErrorMemoryAllocation) return status;
  drain(queue_of(stream));
  const cudaError_t again = allocate(pointer, bytes, true);
  if (again == cudaSuccess) cudaGetLastError();
  return again;
}

cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  if (!is_device_memory(pointer)) return report(cudaErrorInvalidValue);
  enqueue(stream, [pointer] { release(pointer, true); });
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return allocate(pointer, bytes, false);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocate(pointer, bytes, false);
}
cudaError_t cudaFreeHost(void* pointer) {
  return release(pointer, false);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  std::lock_guard<std::mutex> lock(process().mutex);
  *total_bytes = card_bytes();
  *free_bytes = *total_bytes - static_cast<size_t>(process().counters.live_bytes);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  const Place source = place_of(from), target = place_of(to);
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyDefault && (from_device != (source == Place::device) || to_device != (target == Place::device)))
    return report(cudaErrorInvalidValue);
  if ((source == Place::pageable || target == Place::pageable) && spoils_capture(stream))
    return report(cudaErrorStreamCaptureUnsupported);
  count(&Counters::copies);
  enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  if (source == Place::pageable || target == Place::pageable) return cudaStreamSynchronize(stream);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return status == cudaSuccess ? cudaStreamSynchronize(nullptr) : status;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!is_device_memory(to)) return report(cudaErrorInvalidValue);
  enqueue(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}
