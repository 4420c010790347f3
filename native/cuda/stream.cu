#include "cuda/stream.h"

#include <algorithm>
#include <cstring>

#include "cuda/blas.h"

namespace st_moe::cuda {

constexpr size_t kHalfBytes = size_t{4} << 20;  // of the staging memory: one is filled while the other is copied

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
    check(cudaDeviceGetDefaultMemPool(&pool_, device_), "memory pool");
    uint64_t keep = UINT64_MAX;  // freed memory stays in the pool: returning it would synchronize
    check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep), "memory pool");
    for (Half& half : halves_) {
      check(cudaMallocHost(&half.data, kHalfBytes), "staging memory");
      check(cudaEventCreateWithFlags(&half.copied, cudaEventDisableTiming), "event");
    }
    check(cudaMallocHost(&flag_copy_, sizeof(ErrorFlag)), "staging memory");
    check(cudaMallocAsync(&error_flag_, sizeof(ErrorFlag), stream_), "error flag");
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
  destroy_blas(*this);
  if (error_flag_) cudaFreeAsync(error_flag_, stream_);
  for (Half& half : halves_) {
    if (half.copied) cudaEventDestroy(half.copied);
    if (half.data) cudaFreeHost(half.data);
  }
  if (flag_copy_) cudaFreeHost(flag_copy_);
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

// Memory freed by other streams returns when they are done.
cudaError_t Stream::allocate_in_order(size_t bytes, void** data) {
  if (recording_ && !is_outside_) return recording_->allocate(bytes, data);
  const cudaStream_t stream = recording_ ? outside_ : stream_;
  bytes = std::max<size_t>(bytes, 1);
  cudaError_t status = cudaMallocAsync(data, bytes, stream);
  if (status != cudaErrorMemoryAllocation) return status;
  status = trim();
  return status == cudaSuccess ? cudaMallocAsync(data, bytes, stream) : status;
}

cudaError_t Stream::trim() noexcept {
  cudaGetLastError();
  ++synchronisations_;
  const cudaError_t status = wait_for_device(device_, recording_ ? outside_ : stream_);
  return status == cudaSuccess ? cudaMemPoolTrimTo(pool_, 0) : status;
}

void* Stream::try_allocate(size_t bytes) noexcept {
  void* data = nullptr;
  allocation_status_ = cudaSetDevice(device_);
  if (allocation_status_ == cudaSuccess) allocation_status_ = allocate_in_order(bytes, &data);
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
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  fail(ErrorCode::out_of_memory, "not enough memory on cuda: %zu bytes of scratch (%zu of %zu bytes are free)", bytes,
       free_bytes, total_bytes);
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

void Stream::release(void* data, size_t) noexcept {
  cudaSetDevice(device_);
  if (recording_) {
    if (!recording_->release(data)) released_.push_back(data);
    return;
  }
  if (cudaFreeAsync(data, stream_) != cudaSuccess) cudaGetLastError();
}

// The host waits for `half`, which a copy may still use.
void Stream::wait_for(const Half& half) {
  const cudaError_t status = cudaEventQuery(half.copied);
  if (status == cudaSuccess) return;
  if (status != cudaErrorNotReady) check(status, "copy");
  cudaGetLastError();
  ++synchronisations_;
  check(cudaEventSynchronize(half.copied), "copy");
}

void Stream::copy_in(void* to, const void* host, size_t bytes) {
  const cudaStream_t queue = stream();
  for (size_t done = 0; done < bytes; done += kHalfBytes) {
    Half& half = halves_[next_half_];
    next_half_ ^= 1;
    const size_t part = std::min(kHalfBytes, bytes - done);
    wait_for(half);
    std::memcpy(half.data, static_cast<const char*>(host) + done, part);
    check(cudaMemcpyAsync(static_cast<char*>(to) + done, half.data, part, cudaMemcpyHostToDevice, queue), "copy");
    check(cudaEventRecord(half.copied, queue), "copy");
  }
}

void Stream::copy_out(void* host, const void* from, size_t bytes) {
  const cudaStream_t queue = stream();
  check(cudaMemcpyAsync(flag_copy_, error_flag_, sizeof(ErrorFlag), cudaMemcpyDeviceToHost, queue), "copy");
  for (const Half& half : halves_) wait_for(half);
  const auto start = [&](size_t begin) {  // chunk i goes through half i & 1
    const Half& half = halves_[begin / kHalfBytes & 1];
    const size_t part = std::min(kHalfBytes, bytes - begin);
    check(cudaMemcpyAsync(half.data, static_cast<const char*>(from) + begin, part, cudaMemcpyDeviceToHost, queue),
          "copy");
    check(cudaEventRecord(half.copied, queue), "copy");
  };
  if (bytes > 0) start(0);
  for (size_t done = 0; done < bytes; done += kHalfBytes) {
    if (done + kHalfBytes < bytes) start(done + kHalfBytes);
    const Half& half = halves_[done / kHalfBytes & 1];
    wait_for(half);
    std::memcpy(static_cast<char*>(host) + done, half.data, std::min(kHalfBytes, bytes - done));
  }
  if (bytes == 0) check(cudaStreamSynchronize(queue), "copy");
  log_.clear();
  throw_error();
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
