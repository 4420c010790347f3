#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/context.h"
#include "core/steps.h"
#include "cuda/capture.h"
#include "cuda/device_fault.h"
#include "cuda/memory.h"

namespace st_moe::cuda {

// Turns an error of the runtime into Error (device_fault, out_of_memory or internal) with `what` and the runtime's
// text.
void check(cudaError_t status, const char* what);

// The resources of one environment on one device: a CUDA stream, its memory, the cuBLAS handle, pinned staging memory.
// Context::stream points at it.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t stream() const;  // makes the device current
  int device() const { return device_; }
  int capability() const { return capability_; }  // 90 is 9.0

  void* allocate(size_t bytes);               // in stream order; throws Error
  void* try_allocate(size_t bytes) noexcept;  // null if `allocate` would throw
  void expect_memory_is_short() const;        // throws if the last try failed for another reason
  void release(void* data) noexcept;
  cudaError_t trim() noexcept;  // waits, and gives memory that is kept for reuse back to the device
  const DeviceMemory& memory() const { return *memory_; }
  void set_memory_limit(size_t bytes) noexcept { memory_->set_limit(bytes); }

  void copy_in(void* to, const void* host, size_t bytes);
  void copy_out(void* host, const void* from, size_t bytes);  // waits, and throws the error flag of kernels
  void copy_from(Stream& source, void* to, const void* from, size_t bytes);  // of its device, in the order of both

  // The device error flag. Kernels cannot throw: they set it (the first error wins), and the next copy_out throws it.
  struct ErrorFlag {
    int32_t kind;  // 0: none; else one of ErrorKind
    int32_t value;
  };
  ErrorFlag* error_flag() const { return error_flag_; }

  void launched(const char* kernel);      // has been launched on stream()
  void multiplied(const char* function);  // of cuBLAS has been called
  void expect_no_fault();  // throws Error(device_fault) if a kernel has faulted: for errors that are not the runtime's
  int64_t launches() const { return launches_; }
  int64_t gemms() const { return gemms_; }
  int64_t synchronisations() const { return synchronisations_ + memory_->waits(); }

  // Captured steps. From begin_capture to end_capture launches are captured, unless outside capture.
  void begin_capture();
  void set_outside(bool on);
  CapturedStep* end_capture(bool keep, Status* status, size_t* bytes);
  void replay(const CapturedStep& step, const StepArgs* args, int64_t count);
  void destroy_step(CapturedStep* step) noexcept;
  const StepValues* captured_values(uint64_t place) const;  // null outside capture

  struct Blas {              // created at the first GEMM (cuda/blas.h)
    void* handle = nullptr;  // cublasHandle_t
    void* workspace = nullptr;
    size_t workspace_bytes = 0;
    cudaStream_t stream = nullptr;  // that it works on
  } blas;
  int64_t held_bytes() const;  // of the device, besides allocations

 private:
  struct Part {  // of the pinned staging memory
    void* data = nullptr;
    cudaEvent_t copied = nullptr;  // recorded after the copy that uses it
  };

  void make_current() const;
  void wait_for(Stream& other);  // what this stream does next waits for what the other has been given
  void log(const char* name);
  void destroy() noexcept;
  void wait_for(const Part& part);
  void throw_error();

  int device_, capability_ = 0;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<DeviceMemory> memory_;
  static constexpr size_t kParts = 8;
  Part parts_[kParts];
  size_t next_part_ = 0;             // for a copy to the device
  ErrorFlag* error_flag_ = nullptr;  // on the device
  void* flag_copy_ = nullptr;        // pinned
  cudaStream_t outside_ = nullptr;   // for work outside capture
  std::unique_ptr<CapturedStep> recording_;
  bool is_outside_ = false;
  cudaError_t allocation_status_ = cudaSuccess;
  LaunchLog log_;
  cudaEvent_t reached_ =
      nullptr;                   // by this stream, for streams of other devices; created at the first copy between them
  std::vector<void*> released_;  // during capture: memory from before it
  int64_t launches_ = 0, gemms_ = 0, synchronisations_ = 0;
};

enum ErrorKind : int32_t {
  kNoError = 0,
  kIndexError,
  kTargetError,
  kExpertError,
  kGroupError,
  kMaskError,
  kImportanceError,
  kPlaceError,
  kSlotError
};

static inline Stream& stream_of(const Context& ctx) {
  return *static_cast<Stream*>(ctx.stream);
}

// Called by a kernel for an index out of range; the kernel then skips the element.
__device__ static inline void report_error(Stream::ErrorFlag* error_flag, ErrorKind kind, int32_t value) {
  if (atomicCAS(&error_flag->kind, 0, static_cast<int32_t>(kind)) == 0) error_flag->value = value;
}

}  // namespace st_moe::cuda
