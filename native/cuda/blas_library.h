#pragma once
#include <cublas_v2.h>

namespace st_moe::cuda {

// The entry points of cuBLAS 12 or 13, found and opened at run time.
struct BlasLibrary {
  using GemmStridedBatched = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                                const void*, const void*, cudaDataType, int, long long, const void*,
                                                cudaDataType, int, long long, const void*, void*, cudaDataType, int,
                                                long long, int, cublasComputeType_t, cublasGemmAlgo_t);

  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasSetStream_v2) set_stream;
  decltype(&cublasGetVersion_v2) get_version;
  decltype(&cublasGetStatusString) status_string;
  GemmStridedBatched gemm_strided_batched;
  decltype(&cublasGemmGroupedBatchedEx) gemm_grouped_batched;  // null before 12.5
  bool found;
  char reason[400];  // where it was looked for, if not found
};

// Opened at the first call, once a process, and never closed.
const BlasLibrary& blas_library();

}  // namespace st_moe::cuda
