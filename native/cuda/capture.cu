#include "cuda/capture.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/blas.h"
#include "cuda/stream.h"

namespace st_moe::cuda {

CapturedStep::CapturedStep(DeviceMemory& memory) : memory_(memory) {
  const size_t bytes = (kMaxStepValues + 1) * sizeof(StepValues);
  const cudaError_t status = memory_.allocate(bytes, reinterpret_cast<void**>(&values_));
  if (status != cudaErrorMemoryAllocation) check(status, "captured step");
  if (status != cudaSuccess) {
    cudaGetLastError();
    fail(ErrorCode::out_of_memory, "not enough memory on cuda: %zu bytes for the numbers of a captured step", bytes);
  }
  bytes_ = bytes;
}

CapturedStep::~CapturedStep() {
  if (graph) cudaGraphExecDestroy(graph);
  for (const Block& block : blocks_) memory_.release(block.data);
  memory_.release(values_);
  cudaGetLastError();
}

// The smallest free block that is not far too large.
cudaError_t CapturedStep::allocate(size_t bytes, void** data) noexcept {
  constexpr size_t kGrain = 512;
  bytes = (std::max<size_t>(bytes, 1) + kGrain - 1) / kGrain * kGrain;
  Block* best = nullptr;
  for (Block& block : blocks_)
    if (block.free && block.bytes >= bytes && block.bytes <= 2 * bytes && (!best || block.bytes < best->bytes))
      best = &block;
  if (best) {
    best->free = false;
    *data = best->data;
    return cudaSuccess;
  }
  if (const cudaError_t status = memory_.allocate(bytes, data); status != cudaSuccess) return status;
  try {
    blocks_.push_back({*data, bytes, false});
  } catch (...) {
    memory_.release(*data);
    return cudaErrorMemoryAllocation;
  }
  bytes_ += bytes;
  return cudaSuccess;
}

bool CapturedStep::release(void* data) noexcept {
  const auto found = std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& b) { return b.data == data; });
  if (found == blocks_.end()) return false;
  found->free = true;
  return true;
}

void CapturedStep::fill_with_nan(cudaStream_t stream) {
  for (const Block& block : blocks_) check(cudaMemsetAsync(block.data, 0xff, block.bytes, stream), "captured step");
}

std::vector<StepValues> step_values(const StepArgs* args, int64_t count) {
  if (count > kMaxStepValues)
    fail(ErrorCode::unsupported, "a captured step has at most %lld samples and updates, got %lld",
         static_cast<long long>(kMaxStepValues), static_cast<long long>(count));
  std::vector<StepValues> rows(static_cast<size_t>(count) + 1);
  for (int64_t i = 0; i < count; ++i) {
    const StepArgs& a = args[i];
    StepValues& row = rows[static_cast<size_t>(i) + 1];
    row.seed = a.seed;
    row.step = a.step;
    for (int f = 0; f < kFactors; ++f) {
      row.f64[f] = a.factors.value[f];
      row.f32[f] = static_cast<float>(a.factors.value[f]);
    }
  }
  return rows;
}

// ---- which devices are being captured, by any environment

struct Captures {
  std::mutex mutex;
  std::map<int, int> running;  // by device

  static Captures& instance() {
    static auto* const captures = new Captures;
    return *captures;
  }
};

cudaError_t wait_for_device(int device, cudaStream_t stream) {
  Captures& captures = Captures::instance();
  std::unique_lock<std::mutex> lock(captures.mutex);  // held during the wait: no capture may begin meanwhile
  if (captures.running[device] == 0) return cudaDeviceSynchronize();
  lock.unlock();
  return cudaStreamSynchronize(stream);
}

static cudaError_t begin_capture_of(int device, cudaStream_t stream) {
  Captures& captures = Captures::instance();
  std::lock_guard<std::mutex> lock(captures.mutex);
  const cudaError_t status = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  captures.running[device] += status == cudaSuccess;
  return status;
}

static cudaError_t end_capture_of(int device, cudaStream_t stream, cudaGraph_t* graph) {
  Captures& captures = Captures::instance();
  std::lock_guard<std::mutex> lock(captures.mutex);
  --captures.running[device];
  return cudaStreamEndCapture(stream, graph);
}

// ---- the stream's part

void Stream::begin_capture() {
  make_current();
  prepare_blas(*this);  // creating a handle allocates
  if (!outside_) check(cudaStreamCreateWithFlags(&outside_, cudaStreamNonBlocking), "stream");
  // Memory released during capture may still be in use by earlier launches.
  ++synchronisations_;
  check(cudaStreamSynchronize(stream_), "captured step");
  log_.clear();
  auto step = std::make_unique<CapturedStep>(*memory_);
  memory_->follow(outside_);  // nothing is allocated or freed by a captured stream
  const cudaError_t status = begin_capture_of(device_, stream_);
  if (status != cudaSuccess) memory_->follow(stream_);
  check(status, "captured step");
  recording_ = std::move(step);
}

CapturedStep* Stream::end_capture(bool keep, Status* status, size_t* bytes) {
  set_outside(false);
  cudaGraph_t graph = nullptr;
  try {
    const cudaError_t current = cudaSetDevice(device_), ended = end_capture_of(device_, stream_, &graph);
    check(current, "device");
    check(ended, "captured step");
    if (keep) check(cudaGraphInstantiate(&recording_->graph, graph, 0), "captured step");
    recording_->fill_with_nan(outside_);
    ++synchronisations_;
    check(cudaStreamSynchronize(outside_), "captured step");
  } catch (const Error& error) {
    *status = Status{error.code(), {}};
    std::snprintf(status->text, sizeof status->text, "%s", error.what());
  }
  if (graph) cudaGraphDestroy(graph);
  memory_->follow(stream_);
  CapturedStep* step = recording_.release();
  for (void* data : released_) release(data);
  released_.clear();
  *bytes = step->bytes();
  return step;
}

void Stream::set_outside(bool on) {
  if (std::exchange(is_outside_, on) && !on) {
    ++synchronisations_;
    cudaStreamSynchronize(outside_);
  }
}

const StepValues* Stream::captured_values(uint64_t place) const {
  if (!recording_ || is_outside_) return nullptr;
  if (place > kMaxStepValues)
    fail(ErrorCode::unsupported, "a captured step has at most %lld samples and updates",
         static_cast<long long>(kMaxStepValues));
  return recording_->values() + place;
}

// In stream order, so that the kernels of this replay see its values.
void Stream::replay(const CapturedStep& step, const StepArgs* args, int64_t count) {
  const std::vector<StepValues> rows = step_values(args, count);
  copy_in(step.values(), rows.data(), rows.size() * sizeof(StepValues));
  check(cudaGraphLaunch(step.graph, stream_), "replay");
  log("the graph of a captured step");
}

void Stream::destroy_step(CapturedStep* step) noexcept {
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream_);
  ++synchronisations_;
  delete step;
}

}  // namespace st_moe::cuda
