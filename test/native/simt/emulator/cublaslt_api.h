#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/cublas_api.h"

// What a grouped matmul of cuBLASLt 13.2 and newer needs of it, with the numbers of cublasLt.h.
extern "C" {
typedef struct cublasLtContext* cublasLtHandle_t;
typedef struct cublasLtMatrixLayoutOpaque_t* cublasLtMatrixLayout_t;
typedef struct cublasLtMatmulDescOpaque_t* cublasLtMatmulDesc_t;
typedef struct cublasLtMatmulPreferenceOpaque_t* cublasLtMatmulPreference_t;
struct cublasLtMatmulAlgo_t {
  uint64_t data[8];
};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
  size_t workspaceSize;
  cublasStatus_t state;
  float wavesCount;
  int reserved[4];
};

enum cublasLtPointerMode_t { CUBLASLT_POINTER_MODE_HOST = 0, CUBLASLT_POINTER_MODE_DEVICE = 1 };
enum cublasLtIntegerWidth_t { CUBLASLT_INTEGER_WIDTH_32 = 0, CUBLASLT_INTEGER_WIDTH_64 = 1 };
enum cublasLtMatrixLayoutAttribute_t {
  CUBLASLT_GROUPED_MATRIX_LAYOUT_ROWS_COLS_ARRAY_INTEGER_WIDTH = 12,  // int32_t
  CUBLASLT_GROUPED_MATRIX_LAYOUT_LD_ARRAY_INTEGER_WIDTH = 13,         // int32_t
};
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_POINTER_MODE = 2,         // int32_t
  CUBLASLT_MATMUL_DESC_TRANSA = 3,               // int32_t
  CUBLASLT_MATMUL_DESC_TRANSB = 4,               // int32_t
  CUBLASLT_MATMUL_DESC_ALPHA_BATCH_STRIDE = 39,  // int64_t
  CUBLASLT_MATMUL_DESC_BETA_BATCH_STRIDE = 40,   // int64_t
};
// The averages are int64_t to the library, although its header says uint32_t.
enum cublasLtMatmulPreferenceAttributes_t {
  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,    // uint64_t
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,  // uint32_t
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
  CUBLASLT_MATMUL_PREF_GROUPED_AVERAGE_REDUCTION_DIM = 13,
  CUBLASLT_MATMUL_PREF_GROUPED_DESC_D_AVERAGE_ROWS = 14,
  CUBLASLT_MATMUL_PREF_GROUPED_DESC_D_AVERAGE_COLS = 15,
};

typedef cublasStatus_t cublasLtCreate_t(cublasLtHandle_t* handle);
typedef cublasStatus_t cublasLtDestroy_t(cublasLtHandle_t handle);

// The arrays are on the device and are read when the matmul runs: rows and columns as stored, and strides of columns.
typedef cublasStatus_t cublasLtGroupedMatrixLayoutCreate_t(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                                           int groupCount, const void* rows_array,
                                                           const void* cols_array, const void* ld_array);
typedef cublasStatus_t cublasLtMatrixLayoutDestroy_t(cublasLtMatrixLayout_t layout);
typedef cublasStatus_t cublasLtMatrixLayoutSetAttribute_t(cublasLtMatrixLayout_t layout,
                                                          cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                          size_t bytes);

typedef cublasStatus_t cublasLtMatmulDescCreate_t(cublasLtMatmulDesc_t* desc, cublasComputeType_t computeType,
                                                  cudaDataType scaleType);
typedef cublasStatus_t cublasLtMatmulDescDestroy_t(cublasLtMatmulDesc_t desc);
typedef cublasStatus_t cublasLtMatmulDescSetAttribute_t(cublasLtMatmulDesc_t desc,
                                                        cublasLtMatmulDescAttributes_t attribute, const void* value,
                                                        size_t bytes);

typedef cublasStatus_t cublasLtMatmulPreferenceCreate_t(cublasLtMatmulPreference_t* preference);
typedef cublasStatus_t cublasLtMatmulPreferenceDestroy_t(cublasLtMatmulPreference_t preference);
typedef cublasStatus_t cublasLtMatmulPreferenceSetAttribute_t(cublasLtMatmulPreference_t preference,
                                                              cublasLtMatmulPreferenceAttributes_t attribute,
                                                              const void* value, size_t bytes);
typedef cublasStatus_t cublasLtMatmulAlgoGetHeuristic_t(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                        cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
                                                        cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
                                                        cublasLtMatmulPreference_t preference, int requested,
                                                        cublasLtMatmulHeuristicResult_t results[], int* count);

// D = alpha · op(A) · op(B) + beta · C. A, B, C and D are arrays of pointers on the device.
typedef cublasStatus_t cublasLtMatmul_t(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                                        const void* A, cublasLtMatrixLayout_t Adesc, const void* B,
                                        cublasLtMatrixLayout_t Bdesc, const void* beta, const void* C,
                                        cublasLtMatrixLayout_t Cdesc, void* D, cublasLtMatrixLayout_t Ddesc,
                                        const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspaceSize,
                                        cudaStream_t stream);

#pragma GCC visibility push(default)
cublasLtCreate_t cublasLtCreate;
cublasLtDestroy_t cublasLtDestroy;
cublasLtGroupedMatrixLayoutCreate_t cublasLtGroupedMatrixLayoutCreate;
cublasLtMatrixLayoutDestroy_t cublasLtMatrixLayoutDestroy;
cublasLtMatrixLayoutSetAttribute_t cublasLtMatrixLayoutSetAttribute;
cublasLtMatmulDescCreate_t cublasLtMatmulDescCreate;
cublasLtMatmulDescDestroy_t cublasLtMatmulDescDestroy;
cublasLtMatmulDescSetAttribute_t cublasLtMatmulDescSetAttribute;
cublasLtMatmulPreferenceCreate_t cublasLtMatmulPreferenceCreate;
cublasLtMatmulPreferenceDestroy_t cublasLtMatmulPreferenceDestroy;
cublasLtMatmulPreferenceSetAttribute_t cublasLtMatmulPreferenceSetAttribute;
cublasLtMatmulAlgoGetHeuristic_t cublasLtMatmulAlgoGetHeuristic;
cublasLtMatmul_t cublasLtMatmul;
#pragma GCC visibility pop
}
