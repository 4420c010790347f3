#include "emulator/streams.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "emulator/counting.h"
#include "emulator/engine.h"
#include "emulator/fault.h"
#include "emulator/runtime_device.h"
#include "emulator/symbols.h"

struct CUevent_st {
  struct Record {
    std::atomic<bool> reached;
    std::chrono::steady_clock::time_point time{};

    explicit Record(bool at_once) : reached(at_once) {}
  };
  cudaStream_t stream = nullptr;
  std::shared_ptr<Record> last = std::make_shared<Record>(true);
};

namespace simt {
namespace {

constexpr size_t kQueueLimit = 256;

struct Process {
  std::mutex mutex;
  Counters counters{};
  std::mutex streams_mutex;
  std::vector<std::shared_ptr<CUstream_st>> streams{std::make_shared<CUstream_st>()};  // the default one first
};
Process& process() {
  static auto* const instance = new Process;
  return *instance;
}

std::vector<std::shared_ptr<CUstream_st>> all_streams() {
  std::lock_guard<std::mutex> lock(process().streams_mutex);
  return process().streams;
}

// If SIMT_TRACE names a file, one line per event, for programs that cannot call simt_counters.
void trace(int64_t Counters::* counter) {
  static std::FILE* const file = std::getenv("SIMT_TRACE") ? std::fopen(std::getenv("SIMT_TRACE"), "a") : nullptr;
  if (!file) return;
  const char* name = counter == &Counters::launches           ? "launch"
                     : counter == &Counters::gemms            ? "gemm"
                     : counter == &Counters::copies           ? "copy"
                     : counter == &Counters::synchronisations ? "wait"
                     : counter == &Counters::allocations      ? "allocation"
                                                              : "graph";
  std::fprintf(file, "%s\n", name);
  std::fflush(file);
}

}  // namespace

CUstream_st& queue_of(cudaStream_t stream) {
  static CUstream_st& default_stream = *process().streams[0];
  return stream ? *stream : default_stream;
}

// After a fault nothing runs any more.
bool run_one(CUstream_st& stream) {
  std::lock_guard<std::mutex> running(stream.running);
  Operation operation;
  {
    std::lock_guard<std::mutex> lock(stream.mutex);
    if (stream.queue.empty()) return false;
    operation = std::move(stream.queue.front());
    stream.queue.pop_front();
  }
  if (fault_of(stream.device) == cudaSuccess) operation.work();
  return true;
}

void drain(CUstream_st& stream) {
  while (run_one(stream)) {
  }
}

void drain_device() {
  int device = 0;
  cudaGetDevice(&device);
  for (const auto& stream : all_streams())
    if (stream->device == device) drain(*stream);
}

static std::atomic<uint64_t> operation_count{0};

uint64_t operations() {
  return operation_count;
}

void expect_unused(const void* memory, size_t bytes, uint64_t count) {
  const auto* begin = static_cast<const char*>(memory);
  const auto is_in = [&](const void* address) { return address >= begin && address < begin + bytes; };
  for (const auto& stream : all_streams()) {
    if (fault_of(stream->device) != cudaSuccess) continue;
    std::lock_guard<std::mutex> lock(stream->mutex);
    for (const Operation& operation : stream->queue)
      if (operation.number < count && std::any_of(operation.uses.begin(), operation.uses.end(), is_in))
        die("memory is freed while work that uses it has not run");
  }
}

void count(int64_t Counters::* counter) {
  std::lock_guard<std::mutex> lock(process().mutex);
  ++(process().counters.*counter);
  trace(counter);
}

size_t live_bytes() {
  std::lock_guard<std::mutex> lock(process().mutex);
  return static_cast<size_t>(process().counters.live_bytes);
}

void add_live(int64_t allocations, int64_t bytes) {
  std::lock_guard<std::mutex> lock(process().mutex);
  Counters& counters = process().counters;
  counters.live_allocations += allocations;
  counters.live_bytes += bytes;
  if (allocations <= 0) return;
  counters.allocations += allocations;
  trace(&Counters::allocations);
}

void enqueue(cudaStream_t stream, Work work, std::vector<const void*> uses) {
  static const bool eager = is("SIMT_STREAMS", "eager");
  CUstream_st& queue = queue_of(stream);
  Operation operation{std::move(work), std::move(uses), operation_count++};
  if (queue.capture) return queue.capture->nodes.push_back(std::move(operation));
  size_t length;
  {
    std::lock_guard<std::mutex> lock(queue.mutex);
    queue.queue.push_back(std::move(operation));
    length = queue.queue.size();
  }
  if (eager || length > kQueueLimit) drain(queue);
}

void enqueue_kernel(cudaStream_t stream, Work work, std::vector<const void*> uses) {
  if (!fault_is_due()) return enqueue(stream, std::move(work), std::move(uses));
  enqueue(stream, [device = queue_of(stream).device] { begin_fault(device); });
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, Work thread) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return report(cudaErrorInvalidConfiguration);
  if (!shared_memory_fits(kernel, config.dynamicSmemBytes)) return report(cudaErrorInvalidValue);
  if (pool_holds_all()) return report(cudaErrorMemoryAllocation);  // the code of a kernel is loaded at its first launch
  count(&Counters::launches);
  const size_t shared = config.dynamicSmemBytes;
  enqueue_kernel(config.stream, [=] {
    auto body = thread;
    if constexpr (kCounting) begin_count(kernel, grid, block);
    run_grid(grid, block, shared, [](void* fn) { (*static_cast<Work*>(fn))(); }, &body);
    if constexpr (kCounting) end_count();
  });
  return cudaSuccess;
}

void count_gemm() {
  count(&Counters::gemms);
}

void simt_counters(Counters* counters) {
  std::lock_guard<std::mutex> lock(process().mutex);
  *counters = process().counters;
}

}  // namespace simt

using namespace simt;

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  if (spoils_captures_of_device()) return report(cudaErrorStreamCaptureUnsupported);
  drain_device();
  return report(usable());
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  if (flags != cudaStreamNonBlocking) return report(cudaErrorNotSupported);
  const auto made = std::make_shared<CUstream_st>();
  cudaGetDevice(&made->device);
  std::lock_guard<std::mutex> lock(process().streams_mutex);
  process().streams.push_back(made);
  *stream = made.get();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::vector<const void*> pending;
  if (fault_of(stream->device) == cudaSuccess) {
    std::lock_guard<std::mutex> lock(stream->mutex);
    for (const Operation& operation : stream->queue)
      pending.insert(pending.end(), operation.uses.begin(), operation.uses.end());
  }
  if (std::any_of(pending.begin(), pending.end(), is_pinned_memory))
    die("a stream is destroyed while a copy from or to the host has not run");
  drain(*stream);
  std::lock_guard<std::mutex> lock(process().streams_mutex);
  auto& streams = process().streams;
  streams.erase(std::find_if(streams.begin(), streams.end(), [&](const auto& s) { return s.get() == stream; }));
  return report(usable());
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  count(&Counters::synchronisations);
  drain(queue_of(stream));
  return report(usable());
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  const bool ran = run_one(queue_of(stream));
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  return ran ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return report(usable());
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  if (spoils_capture(stream)) return report(cudaErrorStreamCaptureUnsupported);
  event->stream = stream;
  event->last = std::make_shared<CUevent_st::Record>(false);
  enqueue(stream, [record = event->last] {
    record->time = std::chrono::steady_clock::now();
    record->reached = true;
  });
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  count(&Counters::synchronisations);
  while (!event->last->reached && run_one(queue_of(event->stream))) {
  }
  return report(usable());
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const bool reached = event->last->reached;
  if (!reached) run_one(queue_of(event->stream));
  if (const cudaError_t status = usable(); status != cudaSuccess) return report(status);
  return reached ? cudaSuccess : cudaErrorNotReady;
}

// What follows on the stream runs after the last record of the event, which belongs to another stream.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (spoils_capture(stream) || spoils_capture(event->stream)) return report(cudaErrorStreamCaptureUnsupported);
  enqueue(stream, [other = event->stream, record = event->last] {
    while (!record->reached && run_one(queue_of(other))) {
    }
  });
  return report(usable());
}

// Host time, which is the emulator's own: the benchmark runs on it only to be tried.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (!start->last->reached || !end->last->reached) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(end->last->time - start->last->time).count();
  return report(usable());
}
