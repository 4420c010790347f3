#pragma once
#include "cuda/kernel.cuh"

namespace st_moe::cuda {

// How many of the rising keys are below `key`.
__device__ static inline int64_t lower_bound(const int32_t* keys, int64_t count, int64_t key) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace st_moe::cuda
