#include "emulator/fault.h"

#include <array>
#include <atomic>
#include <mutex>

#include "emulator/runtime_device.h"

namespace simt {
namespace {

std::array<std::atomic<bool>, 16> faulted;

}  // namespace

bool fault_is_due() {
  static std::mutex mutex;
  static Trigger trigger("SIMT_FAULT_AT");
  std::lock_guard<std::mutex> lock(mutex);
  return trigger.reached();
}

void begin_fault(int device) {
  faulted[static_cast<size_t>(device) % faulted.size()] = true;
}

cudaError_t fault_of(int device) {
  if (!faulted[static_cast<size_t>(device) % faulted.size()]) return cudaSuccess;
  return static_cast<cudaError_t>(setting("SIMT_FAULT_ERROR", cudaErrorIllegalAddress));
}

cudaError_t usable() {
  int device = 0;
  cudaGetDevice(&device);
  return driver() == cudaSuccess ? fault_of(device) : driver();
}

}  // namespace simt
