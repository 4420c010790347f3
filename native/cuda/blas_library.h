#pragma once
#include <string>

#include "cuda/cublas_api.h"

namespace st_moe::cuda {

// The entry points of cuBLAS 12 or 13.
struct BlasLibrary {
  cublasCreate_t* create;
  cublasDestroy_t* destroy;
  cublasSetStream_t* set_stream;
  cublasSetWorkspace_t* set_workspace;
  cublasGetStatusString_t* status_string;
  cublasGemmStridedBatchedEx_t* gemm_strided_batched;
  cublasGemmGroupedBatchedEx_t* gemm_grouped_batched;  // null before 12.5
};

struct BlasSearch {
  const BlasLibrary* library;  // null if none works
  std::string reason;          // what was tried, and the error of each
};

// The first library that multiplies two small matrices correctly on the current device. Searched once per process,
// never closed. Throws Error for causes other than cuBLAS, such as a full device.
const BlasSearch& find_blas();

// Throws Error(backend_unavailable) if there is none.
const BlasLibrary& blas_library();

}  // namespace st_moe::cuda
