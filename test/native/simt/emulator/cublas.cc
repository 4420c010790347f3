#include <vector>

#include "cuda/cublas_api.h"

#include "emulator/counting.h"
#include "emulator/fault.h"
#include "emulator/gemm.h"
#include "emulator/runtime_device.h"
#include "emulator/streams.h"

// The argument checks of cuBLAS.
struct cublasContext {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;  // the caller's; without one, a GEMM allocates
};

using namespace simt;

namespace {

bool types_fit(cudaDataType a, cudaDataType b, cudaDataType c, cublasComputeType_t compute) {
  if (a != b) return false;
  if (compute == CUBLAS_COMPUTE_64F) return a == CUDA_R_64F && c == a;
  if (a == CUDA_R_64F || c == CUDA_R_64F) return false;
  return c == a || (c == CUDA_R_32F && compute != CUBLAS_COMPUTE_32F_FAST_TF32);
}

// Whether a GEMM may be queued on the stream; allocations of cuBLAS itself cannot be captured.
cublasStatus_t ready(cublasHandle_t handle) {
  if (usable() != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  return !handle->workspace && spoils_capture(handle->stream) ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}

double scalar(const void* from, int i, cublasComputeType_t compute) {
  return load(from, static_cast<size_t>(i), compute == CUBLAS_COMPUTE_64F ? CUDA_R_64F : CUDA_R_32F);
}

}  // namespace

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  if (usable() != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (pool_holds_all()) return CUBLAS_STATUS_ALLOC_FAILED;
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  handle->workspace = nullptr;  // as the real one: its own again
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
  if (bytes != 0 && !simt::is_device_memory(workspace)) return CUBLAS_STATUS_INVALID_VALUE;
  handle->workspace = bytes != 0 ? workspace : nullptr;
  return CUBLAS_STATUS_SUCCESS;
}

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "unknown";
  }
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb,
                                          int m, int n, int k, const void* alpha, const void* A, cudaDataType Atype,
                                          int lda, long long strideA, const void* B, cudaDataType Btype, int ldb,
                                          long long strideB, const void* beta, void* C, cudaDataType Ctype, int ldc,
                                          long long strideC, int batchCount, cublasComputeType_t computeType,
                                          cublasGemmAlgo_t) {
  if (!types_fit(Atype, Btype, Ctype, computeType)) return CUBLAS_STATUS_NOT_SUPPORTED;
  const Gemm first{transa,
                   transb,
                   m,
                   n,
                   k,
                   scalar(alpha, 0, computeType),
                   scalar(beta, 0, computeType),
                   A,
                   B,
                   C,
                   lda,
                   ldb,
                   ldc,
                   Atype,
                   Ctype,
                   computeType == CUBLAS_COMPUTE_32F_FAST_TF32};
  if (batchCount < 0 || !sizes_fit(first)) return CUBLAS_STATUS_INVALID_VALUE;
  if (batchCount > 65535) return CUBLAS_STATUS_NOT_SUPPORTED;  // as older versions
  if (m == 0 || n == 0 || batchCount == 0) return CUBLAS_STATUS_SUCCESS;
  if (!simt::is_device_memory(C) || (k > 0 && !(simt::is_device_memory(A) && simt::is_device_memory(B))))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (const cublasStatus_t status = ready(handle); status != CUBLAS_STATUS_SUCCESS) return status;
  simt::count_gemm();
  const auto run_all = [=] {
    if (counted(first, batchCount)) return;
    for (int i = 0; i < batchCount; ++i) {
      Gemm gemm = first;
      gemm.A = static_cast<const char*>(A) + i * strideA * static_cast<long long>(bytes_of(Atype));
      gemm.B = static_cast<const char*>(B) + i * strideB * static_cast<long long>(bytes_of(Btype));
      gemm.C = static_cast<char*>(C) + i * strideC * static_cast<long long>(bytes_of(Ctype));
      run(gemm);
    }
  };
  simt::enqueue_kernel(handle->stream, run_all, {A, B, C, handle->workspace});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmGroupedBatchedEx(cublasHandle_t handle, const cublasOperation_t transa_array[],
                                          const cublasOperation_t transb_array[], const int m_array[],
                                          const int n_array[], const int k_array[], const void* alpha_array,
                                          const void* const Aarray[], cudaDataType Atype, const int lda_array[],
                                          const void* const Barray[], cudaDataType Btype, const int ldb_array[],
                                          const void* beta_array, void* const Carray[], cudaDataType Ctype,
                                          const int ldc_array[], int group_count, const int group_size[],
                                          cublasComputeType_t computeType) {
  if (!types_fit(Atype, Btype, Ctype, computeType) || Ctype != Atype) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (group_count < 0) return CUBLAS_STATUS_INVALID_VALUE;
  std::vector<Gemm> gemms;
  for (int g = 0; g < group_count; ++g) {
    const Gemm gemm{transa_array[g],
                    transb_array[g],
                    m_array[g],
                    n_array[g],
                    k_array[g],
                    scalar(alpha_array, g, computeType),
                    scalar(beta_array, g, computeType),
                    nullptr,
                    nullptr,
                    nullptr,
                    lda_array[g],
                    ldb_array[g],
                    ldc_array[g],
                    Atype,
                    Ctype,
                    computeType == CUBLAS_COMPUTE_32F_FAST_TF32};
    if (group_size[g] < 0 || !sizes_fit(gemm)) return CUBLAS_STATUS_INVALID_VALUE;
    gemms.insert(gemms.end(), static_cast<size_t>(group_size[g]), gemm);
  }
  if (gemms.empty()) return CUBLAS_STATUS_SUCCESS;
  if (!simt::is_device_memory(Aarray) || !simt::is_device_memory(Barray) || !simt::is_device_memory(Carray))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (const cublasStatus_t status = ready(handle); status != CUBLAS_STATUS_SUCCESS) return status;
  simt::count_gemm();
  const auto run_all = [=]() mutable {
    if (counted(gemms)) return;
    for (size_t i = 0; i < gemms.size(); ++i) {
      gemms[i].A = Aarray[i];
      gemms[i].B = Barray[i];
      gemms[i].C = Carray[i];
      if (!is_aligned(gemms[i])) return simt::begin_fault(0);  // tensor cores read 16 bytes at a time
      run(gemms[i]);
    }
  };
  simt::enqueue_kernel(handle->stream, run_all, {Aarray, Barray, Carray, handle->workspace});
  return CUBLAS_STATUS_SUCCESS;
}
