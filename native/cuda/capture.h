#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "core/steps.h"
#include "cuda/memory.h"

// A step captured in a CUDA graph.
namespace st_moe::cuda {

// StepArgs for kernels.
struct StepValues {
  uint64_t seed, step;  // of a sample
  double f64[kFactors];
  float f32[kFactors];
};
constexpr int64_t kMaxStepValues = 8192;

// The graph, the memory of its tensors, and the values that change. The step keeps that memory, because graph nodes
// contain its addresses. A block released during capture is reused by later nodes.
class CapturedStep {
 public:
  explicit CapturedStep(DeviceMemory& memory);  // throws Error
  ~CapturedStep();                              // when the stream of its replays is done
  CapturedStep(const CapturedStep&) = delete;
  CapturedStep& operator=(const CapturedStep&) = delete;

  cudaError_t allocate(size_t bytes, void** data) noexcept;
  bool release(void* data) noexcept;        // false: not memory of this step
  void fill_with_nan(cudaStream_t stream);  // until the first replay
  size_t bytes() const { return bytes_; }

  StepValues* values() const { return values_; }  // [kMaxStepValues + 1]; the first is for ops that do not sample
  cudaGraphExec_t graph = nullptr;                // null: abandoned

 private:
  struct Block {
    void* data;
    size_t bytes;
    bool free;
  };

  DeviceMemory& memory_;
  std::vector<Block> blocks_;
  size_t bytes_ = 0;
  StepValues* values_ = nullptr;
};

// cudaDeviceSynchronize is an error during any capture on the device, and breaks that capture: then waits only for
// `stream`.
cudaError_t wait_for_device(int device, cudaStream_t stream);

// The rows that a replay copies to the device: one for ops that do not sample, then those of args.
std::vector<StepValues> step_values(const StepArgs* args, int64_t count);

}  // namespace st_moe::cuda
