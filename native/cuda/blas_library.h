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
  const BlasLibrary* library;  // null where none works
  std::string reason;          // what was tried, and what was wrong with it
};

// The first library that multiplies two small matrices right on the current device. Looked for once a process, and
// never closed. Throws Error for what is no fault of cuBLAS, such as a full device.
const BlasSearch& find_blas();

// Throws Error(backend_unavailable) where there is none.
const BlasLibrary& blas_library();

}  // namespace st_moe::cuda
