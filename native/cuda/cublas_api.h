#pragma once
#include <cuda_runtime.h>
#include <library_types.h>

#include <cstddef>

// The part of cuBLAS 12 and 13 that is used here, with the numbers of cublas_v2.h. cuBLAS is loaded at run time, and
// its headers are not needed to build the plugin.
extern "C" {
typedef struct cublasContext* cublasHandle_t;

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_NOT_INITIALIZED = 1,
  CUBLAS_STATUS_ALLOC_FAILED = 3,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_ARCH_MISMATCH = 8,
  CUBLAS_STATUS_MAPPING_ERROR = 11,
  CUBLAS_STATUS_EXECUTION_FAILED = 13,
  CUBLAS_STATUS_INTERNAL_ERROR = 14,
  CUBLAS_STATUS_NOT_SUPPORTED = 15,
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_OP_C = 2 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
enum cublasComputeType_t {
  CUBLAS_COMPUTE_32F = 68,
  CUBLAS_COMPUTE_32F_PEDANTIC = 69,
  CUBLAS_COMPUTE_64F = 70,
  CUBLAS_COMPUTE_32F_FAST_TF32 = 77,
};

typedef cublasStatus_t cublasCreate_t(cublasHandle_t* handle);
typedef cublasStatus_t cublasDestroy_t(cublasHandle_t handle);
typedef cublasStatus_t cublasSetStream_t(cublasHandle_t handle, cudaStream_t stream);
typedef cublasStatus_t cublasSetWorkspace_t(cublasHandle_t handle, void* workspace, size_t bytes);
typedef const char* cublasGetStatusString_t(cublasStatus_t status);

typedef cublasStatus_t cublasGemmStridedBatchedEx_t(cublasHandle_t handle, cublasOperation_t transa,
                                                    cublasOperation_t transb, int m, int n, int k, const void* alpha,
                                                    const void* A, cudaDataType Atype, int lda, long long strideA,
                                                    const void* B, cudaDataType Btype, int ldb, long long strideB,
                                                    const void* beta, void* C, cudaDataType Ctype, int ldc,
                                                    long long strideC, int batchCount, cublasComputeType_t computeType,
                                                    cublasGemmAlgo_t algo);

// The arrays of pointers are on the device, the others on the host.
typedef cublasStatus_t cublasGemmGroupedBatchedEx_t(
    cublasHandle_t handle, const cublasOperation_t transa_array[], const cublasOperation_t transb_array[],
    const int m_array[], const int n_array[], const int k_array[], const void* alpha_array, const void* const Aarray[],
    cudaDataType Atype, const int lda_array[], const void* const Barray[], cudaDataType Btype, const int ldb_array[],
    const void* beta_array, void* const Carray[], cudaDataType Ctype, const int ldc_array[], int group_count,
    const int group_size[], cublasComputeType_t computeType);

// The emulator of the tests has its own functions. Exported, so that its library files can call
// them.
#if defined(ST_MOE_SIMT)
#pragma GCC visibility push(default)
cublasCreate_t cublasCreate_v2;
cublasDestroy_t cublasDestroy_v2;
cublasSetStream_t cublasSetStream_v2;
cublasSetWorkspace_t cublasSetWorkspace_v2;
cublasGetStatusString_t cublasGetStatusString;
cublasGemmStridedBatchedEx_t cublasGemmStridedBatchedEx;
cublasGemmGroupedBatchedEx_t cublasGemmGroupedBatchedEx;
#pragma GCC visibility pop
#endif
}
