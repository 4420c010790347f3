#pragma once
#include <string>
#include <vector>

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

// Why no library can be opened; empty if one can. Needs no device. Python environments beside the program are looked
// for in `folders`.
std::string blas_fault(const std::vector<std::string>& folders);

// The first library that multiplies two small matrices correctly, on the device that is current at the first call.
// Never closed. Throws Error: backend_unavailable if there is none, and others for other causes, such as a full device;
// the next call then searches again.
const BlasLibrary& blas_library();

}  // namespace st_moe::cuda
