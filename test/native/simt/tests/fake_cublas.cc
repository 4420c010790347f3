#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/cublas_api.h"

// A libcublas that is found as a file: the emulator's, or one that is broken in a way of its own (FAKE_…). It writes
// its name to the file that FAKE_CUBLAS_LOG names when a handle is made.
namespace {

template <class Function>
Function* emulated(const char* name) {
  void* plugin = dlopen(std::getenv("ST_MOE_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
  return reinterpret_cast<Function*>(dlsym(plugin, name));
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  if (const char* path = std::getenv("FAKE_CUBLAS_LOG")) {
    std::FILE* log = std::fopen(path, "a");
    std::fputs(FAKE_NAME "\n", log);
    std::fclose(log);
  }
#if defined(FAKE_CREATE)
  return CUBLAS_STATUS_NOT_INITIALIZED;
#endif
  return emulated<cublasCreate_t>("cublasCreate_v2")(handle);
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  return emulated<cublasDestroy_t>("cublasDestroy_v2")(handle);
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  return emulated<cublasSetStream_t>("cublasSetStream_v2")(handle, stream);
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
  return emulated<cublasSetWorkspace_t>("cublasSetWorkspace_v2")(handle, workspace, bytes);
}
const char* cublasGetStatusString(cublasStatus_t status) {
  return emulated<cublasGetStatusString_t>("cublasGetStatusString")(status);
}
#if !defined(FAKE_SYMBOLS)
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb,
                                          int m, int n, int k, const void* alpha, const void* A, cudaDataType Atype,
                                          int lda, long long strideA, const void* B, cudaDataType Btype, int ldb,
                                          long long strideB, const void* beta, void* C, cudaDataType Ctype, int ldc,
                                          long long strideC, int count, cublasComputeType_t compute,
                                          cublasGemmAlgo_t algo) {
#if defined(FAKE_GEMM)
  return CUBLAS_STATUS_NOT_SUPPORTED;
#elif defined(FAKE_WRONG)
  k -= 1;
#endif
  return emulated<cublasGemmStridedBatchedEx_t>("cublasGemmStridedBatchedEx")(
      handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc,
      strideC, count, compute, algo);
}
#endif
}
#pragma GCC visibility pop
