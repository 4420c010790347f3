#include "cuda/stream.h"

#include <algorithm>
#include <cstring>

#include "cuda/blas.h"

namespace st_moe::cuda {

constexpr size_t kPartBytes = size_t{1} << 20;  // of the staging memory: some are filled while others are copied

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a non-sticky error must not fail the next launch
  expect_no_fault(status);
  const ErrorCode code = status == cudaErrorMemoryAllocation ? ErrorCode::out_of_memory : ErrorCode::internal;
  fail(code, "CUDA, %s: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

Stream::Stream(int device) : device_(device), log_(device) {
  try {
    check(cudaSetDevice(device_), "device");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), "device");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_), "device");
    capability_ = 10 * major + minor;
    memory_ = std::make_unique<DeviceMemory>(device_, stream_);
    for (Part& part : parts_) {
      check(cudaMallocHost(&part.data, kPartBytes), "staging memory");
      check(cudaEventCreateWithFlags(&part.copied, cudaEventDisableTiming), "event");
    }
    check(cudaMallocHost(&flag_copy_, sizeof(ErrorFlag)), "staging memory");
    check(memory_->allocate(sizeof(ErrorFlag), reinterpret_cast<void**>(&error_flag_)), "error flag");
    check(cudaMemsetAsync(error_flag_, 0, sizeof(ErrorFlag), stream_), "error flag");
  } catch (...) {
    destroy();
    throw;
  }
}

Stream::~Stream() {
  destroy();
}

void Stream::destroy() noexcept {
  cudaSetDevice(device_);
  if (stream_) cudaStreamSynchronize(stream_);
  recording_.reset();
  destroy_blas(*this);
  if (error_flag_) memory_->release(error_flag_);
  memory_.reset();
  for (Part& part : parts_) {
    if (part.copied) cudaEventDestroy(part.copied);
    if (part.data) cudaFreeHost(part.data);
  }
  if (flag_copy_) cudaFreeHost(flag_copy_);
  if (reached_) cudaEventDestroy(reached_);
  if (outside_) cudaStreamDestroy(outside_);
  if (stream_) cudaStreamDestroy(stream_);
  cudaGetLastError();
}

void Stream::make_current() const {
  check(cudaSetDevice(device_), "device");
}

cudaStream_t Stream::stream() const {
  make_current();
  return is_outside_ ? outside_ : stream_;
}

cudaError_t Stream::trim() noexcept {
  return memory_->trim();
}

int64_t Stream::held_bytes() const {
  return static_cast<int64_t>(sizeof(ErrorFlag) + blas.workspace_bytes) + memory_->kept_bytes();
}

void* Stream::try_allocate(size_t bytes) noexcept {
  void* data = nullptr;
  allocation_status_ = cudaSetDevice(device_);
  const bool captured = recording_ && !is_outside_;
  if (allocation_status_ == cudaSuccess)
    allocation_status_ = captured ? recording_->allocate(bytes, &data) : memory_->allocate(bytes, &data);
  if (allocation_status_ == cudaSuccess) return data;
  cudaGetLastError();
  return nullptr;
}

void Stream::expect_memory_is_short() const {
  if (allocation_status_ != cudaErrorMemoryAllocation) check(allocation_status_, "allocation");
}

void* Stream::allocate(size_t bytes) {
  if (void* data = try_allocate(bytes)) return data;
  expect_memory_is_short();
  fail(ErrorCode::out_of_memory, "not enough memory on cuda for %zu bytes of scratch; %s", bytes,
       memory_->shortage().c_str());
}

// Captured work runs at a replay.
void Stream::log(const char* name) {
  if (recording_ && !is_outside_) return;
  log_.add(name);
  if (!waits_after_launch()) return;
  ++synchronisations_;
  check(cudaStreamSynchronize(stream()), name);
  log_.clear();
}

void Stream::launched(const char* kernel) {
  ++launches_;
  log(kernel);
}

void Stream::multiplied(const char* function) {
  ++gemms_;
  log(function);
}

void Stream::expect_no_fault() {
  make_current();
  const cudaError_t status = cudaStreamQuery(recording_ ? outside_ : stream_);
  cudaGetLastError();
  cuda::expect_no_fault(status);
}

void Stream::release(void* data) noexcept {
  cudaSetDevice(device_);
  if (!recording_) return memory_->release(data);
  if (!recording_->release(data)) released_.push_back(data);
}

// The host waits for `part`, which a copy may still use.
void Stream::wait_for(const Part& part) {
  const cudaError_t status = cudaEventQuery(part.copied);
  if (status == cudaSuccess) return;
  if (status != cudaErrorNotReady) check(status, "copy");
  cudaGetLastError();
  ++synchronisations_;
  check(cudaEventSynchronize(part.copied), "copy");
}

void Stream::copy_in(void* to, const void* host, size_t bytes) {
  const cudaStream_t queue = stream();
  for (size_t done = 0; done < bytes; done += kPartBytes) {
    Part& part = parts_[next_part_];
    next_part_ = (next_part_ + 1) % kParts;
    const size_t size = std::min(kPartBytes, bytes - done);
    wait_for(part);
    std::memcpy(part.data, static_cast<const char*>(host) + done, size);
    check(cudaMemcpyAsync(static_cast<char*>(to) + done, part.data, size, cudaMemcpyHostToDevice, queue), "copy");
    check(cudaEventRecord(part.copied, queue), "copy");
  }
}

// What copies to the device still have to read of the staging memory, they read before these copies write it.
void Stream::copy_out(void* host, const void* from, size_t bytes) {
  const cudaStream_t queue = stream();
  check(cudaMemcpyAsync(flag_copy_, error_flag_, sizeof(ErrorFlag), cudaMemcpyDeviceToHost, queue), "copy");
  const auto part_at = [&](size_t begin) -> const Part& { return parts_[begin / kPartBytes % kParts]; };
  size_t started = 0;
  for (size_t done = 0; done < bytes; done += kPartBytes) {
    for (; started < bytes && started < done + kParts * kPartBytes; started += kPartBytes) {
      const Part& part = part_at(started);
      const size_t size = std::min(kPartBytes, bytes - started);
      check(cudaMemcpyAsync(part.data, static_cast<const char*>(from) + started, size, cudaMemcpyDeviceToHost, queue),
            "copy");
      check(cudaEventRecord(part.copied, queue), "copy");
    }
    wait_for(part_at(done));
    std::memcpy(static_cast<char*>(host) + done, part_at(done).data, std::min(kPartBytes, bytes - done));
  }
  if (bytes == 0) check(cudaStreamSynchronize(queue), "copy");
  log_.clear();
  throw_error();
}

void Stream::wait_for(Stream& other) {
  other.make_current();
  if (!other.reached_) check(cudaEventCreateWithFlags(&other.reached_, cudaEventDisableTiming), "event");
  check(cudaEventRecord(other.reached_, other.stream_), "copy");
  make_current();
  check(cudaStreamWaitEvent(stream_, other.reached_, 0), "copy");
}

void Stream::copy_from(Stream& source, void* to, const void* from, size_t bytes) {
  wait_for(source);
  check(cudaMemcpyPeerAsync(to, device_, from, source.device_, bytes, stream_), "copy");
  source.wait_for(*this);  // before its memory is used again
}

void Stream::throw_error() {
  const ErrorFlag error = *static_cast<const ErrorFlag*>(flag_copy_);
  if (error.kind == kNoError) return;
  check(cudaMemsetAsync(error_flag_, 0, sizeof(ErrorFlag), stream()), "error flag");
  switch (error.kind) {
    case kIndexError: fail(ErrorCode::option, "index must be in [0, V), got %d", error.value);
    case kTargetError: fail(ErrorCode::option, "target must be in [0, V) or ignore_index, got %d", error.value);
    case kExpertError: fail(ErrorCode::option, "expert index and position must be in range, got %d", error.value);
    case kGroupError:
      fail(ErrorCode::shape, "group sizes must not be negative and must sum to the rows of x, got %d", error.value);
    case kSlotError: fail(ErrorCode::option, "two tokens have the same slot of an expert: position %d", error.value);
    case kPlaceError: fail(ErrorCode::option, "position and slot must be in the cache, got %d", error.value);
    case kImportanceError: fail(ErrorCode::option, "importance must be from 0 to 1");
    case kMaskError: fail(ErrorCode::non_finite, "mask must be 0 for padding and another number for a token, got NaN");
  }
  fail(ErrorCode::internal, "a kernel reported error %d with %d", error.kind, error.value);
}

}  // namespace st_moe::cuda
