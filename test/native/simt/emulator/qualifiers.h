#pragma once

// CUDA's words for a host compiler.
#define __CUDACC__ 1
#define ST_MOE_SIMT 1

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ thread_local  // static storage, one copy for each OS thread, which runs one block at a time
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
