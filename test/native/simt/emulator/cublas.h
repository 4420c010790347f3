#pragma once
#include "cuda/cublas_api.h"

// Stands in for cuBLAS. Exported, so that the libraries of the tests that are found as files can call it.
extern "C" {
#pragma GCC visibility push(default)
cublasCreate_t cublasCreate_v2;
cublasDestroy_t cublasDestroy_v2;
cublasSetStream_t cublasSetStream_v2;
cublasSetWorkspace_t cublasSetWorkspace_v2;
cublasGetStatusString_t cublasGetStatusString;
cublasGemmStridedBatchedEx_t cublasGemmStridedBatchedEx;
cublasGemmGroupedBatchedEx_t cublasGemmGroupedBatchedEx;
#pragma GCC visibility pop
}
