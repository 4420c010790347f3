#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>

namespace st_moe::cuda {

struct DevicePool;  // what the environments of the process share of a device

// The memory that one environment uses of a device: a caching allocator. A released block is kept, and given out again
// in the order of the stream, because the driver takes longer to find one than many kernels run. What environments keep
// goes back to the device when one of them finds no memory, or would exceed the limit of the process.
class DeviceMemory {
 public:
  DeviceMemory(int device, cudaStream_t stream);  // throws Error
  ~DeviceMemory();                                // every block has been released
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // The stream in whose order blocks are used from now on: all work with them on the one before has ended.
  void follow(cudaStream_t stream);

  cudaError_t allocate(size_t bytes, void** data) noexcept;
  void release(void* data) noexcept;

  // Waits for the device, and gives back what the environments of the process keep.
  cudaError_t trim() noexcept;
  void set_limit(size_t bytes) noexcept;  // on what the process takes, in use and kept

  int64_t kept_bytes() const;               // by this environment, and by the pool of the process
  int64_t waits() const { return waits_; }  // for the device
  std::string shortage() const;             // what is known about the last allocation that failed

 private:
  using Kept = std::multimap<size_t, void*>;  // by bytes

  Kept::iterator fitting(size_t bytes);
  cudaError_t trim_locked() noexcept;
  void give_back() noexcept;  // what is kept, to the pool

  DevicePool& pool_;
  cudaStream_t stream_;
  std::unordered_map<void*, size_t> used_;  // bytes of each block
  Kept kept_;
  size_t kept_bytes_ = 0;
  size_t emptied_bytes_ = 0;  // kept by environments, when the last allocation needed it
  int64_t waits_ = 0;
};

}  // namespace st_moe::cuda
