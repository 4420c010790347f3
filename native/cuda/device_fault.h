#pragma once
#include <cuda_runtime.h>

#include <mutex>

// A kernel fault (an illegal address, a failed assertion) destroys the context of its device: every later runtime call,
// mostly an unrelated one, returns the same error. This file adds the name of the kernel.
namespace st_moe::cuda {

// Throws Error(device_fault) if `status` is the error of a fault, or the current device had one. All later errors have
// the first text.
void expect_no_fault(cudaError_t status);

// Without namespaces and parameters, such as softmax_kernel<float>. Lives as long as the process.
const char* kernel_name(const void* kernel);

// Whether the host waits after each launch, so that a fault has one kernel: ST_MOE_CUDA_SYNC=1.
bool waits_after_launch();

// The kernels launched on a stream since the host last waited for it: each name once, the latest last.
class LaunchLog {
 public:
  explicit LaunchLog(int device);
  ~LaunchLog();
  LaunchLog(const LaunchLog&) = delete;
  LaunchLog& operator=(const LaunchLog&) = delete;

  void add(const char* name);
  void clear();

 private:
  friend struct Faults;
  static constexpr int kNames = 32;  // older ones are only counted

  const int device_;
  std::mutex mutex_;  // another environment reads the log if it meets the fault first
  const char* names_[kNames];
  int count_ = 0, forgotten_ = 0;
};

}  // namespace st_moe::cuda
