#pragma once

// Formulas shared by the backends are compiled by host compilers and nvcc.
#if defined(__CUDACC__)
#define ST_MOE_HOST_DEVICE __host__ __device__
#else
#define ST_MOE_HOST_DEVICE
#endif
