#include "emulator/cublaslt_api.h"

#include <array>
#include <cstring>
#include <vector>

#include "emulator/counting.h"
#include "emulator/fault.h"
#include "emulator/gemm.h"
#include "emulator/runtime_device.h"
#include "emulator/streams.h"

// Grouped matmuls whose sizes are on the device. Narrower than the library where one of its versions is wrong: α and β
// are on the device, and no algorithm is asked for while a stream is captured.
struct cublasLtContext {};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType type;
  int groups;
  const void *rows, *columns, *ld;
  int32_t width = CUBLASLT_INTEGER_WIDTH_32, ld_width = CUBLASLT_INTEGER_WIDTH_32;
};
struct cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  cudaDataType scale;
  int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST, transa = CUBLAS_OP_N, transb = CUBLAS_OP_N;
  int64_t alpha_stride = 0, beta_stride = 0;
};
struct cublasLtMatmulPreferenceOpaque_t {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};
  int64_t averages[3] = {};
};

using namespace simt;

namespace {

using Layout = cublasLtMatrixLayoutOpaque_t;

constexpr uint64_t kAlgorithm = 0x67726f757065642e;
constexpr size_t kWorkspace = 4096, kWorkspaceAlignment = 256, kAlignment = 16;

template <class T>
cublasStatus_t set(T& to, const void* value, size_t bytes) {
  if (!value || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

bool on_device(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers)
    if (!pointer || !is_device_memory(pointer)) return false;
  return true;
}

bool is_complete(const Layout& layout) {
  return layout.groups > 0 && on_device({layout.rows, layout.columns, layout.ld});
}

bool is_half(cudaDataType type) {
  return type == CUDA_R_16BF || type == CUDA_R_16F;
}

// Hopper, and Blackwell of data centers.
bool has_grouped() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9 &&
         major <= 11;
}

bool is_supported(const cublasLtMatmulDescOpaque_t& desc, const Layout& a, const Layout& b, const Layout& c,
                  const Layout& d) {
  return has_grouped() && desc.compute == CUBLAS_COMPUTE_32F && desc.scale == CUDA_R_32F &&
         desc.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE && is_half(a.type) && b.type == a.type &&
         (d.type == a.type || d.type == CUDA_R_32F) && c.type == d.type && b.groups == a.groups &&
         c.groups == a.groups && d.groups == a.groups;
}

int64_t entry(const void* array, int32_t width, int g) {
  return width == CUBLASLT_INTEGER_WIDTH_64 ? static_cast<const int64_t*>(array)[g]
                                            : static_cast<const int32_t*>(array)[g];
}

// A matrix of a group: rows and columns as stored.
struct Matrix {
  int64_t rows, columns, ld;
  char* memory;
};
Matrix matrix(const Layout& layout, const void* pointers, int g) {
  return {entry(layout.rows, layout.width, g), entry(layout.columns, layout.width, g),
          entry(layout.ld, layout.ld_width, g), static_cast<char* const*>(pointers)[g]};
}

// Reads and writes of 16 bytes, or of what the caller has promised.
bool is_aligned(const Matrix& x, size_t size, size_t alignment) {
  if (x.rows == 0 || x.columns == 0) return true;
  return reinterpret_cast<uintptr_t>(x.memory) % alignment == 0 && static_cast<size_t>(x.ld) * size % kAlignment == 0;
}

bool is_matrix(const Matrix& x) {
  return x.rows >= 0 && x.columns >= 0 && x.rows <= INT32_MAX && x.columns <= INT32_MAX && x.ld >= x.rows &&
         x.ld >= 1 && x.ld <= INT32_MAX;
}

struct Call {
  cublasLtMatmulDescOpaque_t desc;
  const float *alpha, *beta;
  std::array<Layout, 4> layouts;        // of A, B, C and D
  std::array<const void*, 4> pointers;  // arrays of them
  std::array<uint32_t, 4> alignment;
};

// One group. False where the sizes or the memory are none of a matmul.
bool gemm_of(const Call& call, int g, Gemm* gemm) {
  std::array<Matrix, 4> all;
  for (size_t i = 0; i < 4; ++i) {
    all[i] = matrix(call.layouts[i], call.pointers[i], g);
    if (!is_matrix(all[i]) || !is_aligned(all[i], bytes_of(call.layouts[i].type), call.alignment[i])) return false;
  }
  auto [a, b, c, d] = all;
  const auto transa = static_cast<cublasOperation_t>(call.desc.transa);
  const auto transb = static_cast<cublasOperation_t>(call.desc.transb);
  const int64_t m = transa == CUBLAS_OP_N ? a.rows : a.columns, k = transa == CUBLAS_OP_N ? a.columns : a.rows;
  const int64_t n = transb == CUBLAS_OP_N ? b.columns : b.rows;
  if ((transb == CUBLAS_OP_N ? b.rows : b.columns) != k || d.rows != m || d.columns != n) return false;
  if (c.rows != m || c.columns != n) return false;
  const double alpha = call.alpha[g * call.desc.alpha_stride], beta = call.beta[g * call.desc.beta_stride];
  const cudaDataType type = call.layouts[3].type;
  if (beta != 0 && c.memory != d.memory)
    for (int64_t column = 0; column < n; ++column)
      std::memmove(d.memory + column * d.ld * static_cast<int64_t>(bytes_of(type)),
                   c.memory + column * c.ld * static_cast<int64_t>(bytes_of(type)),
                   static_cast<size_t>(m) * bytes_of(type));
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  *gemm = {transa,   transb,   narrow(m), narrow(n),    narrow(k),    alpha,        beta,
           a.memory, b.memory, d.memory,  narrow(a.ld), narrow(b.ld), narrow(d.ld), call.layouts[0].type,
           type,     false};
  return true;
}

void run_groups(const Call& call, int device) {
  std::vector<Gemm> gemms(static_cast<size_t>(call.layouts[0].groups));
  for (size_t g = 0; g < gemms.size(); ++g)
    if (!gemm_of(call, static_cast<int>(g), &gemms[g])) return begin_fault(device);
  if (counted(gemms)) return;
  for (const Gemm& gemm : gemms) run(gemm);
}

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (usable() != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

// As the library's, it checks nothing.
cublasStatus_t cublasLtGroupedMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, int groups,
                                                 const void* rows, const void* columns, const void* ld) {
  *layout = new Layout{type, groups, rows, columns, ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
  switch (attribute) {
    case CUBLASLT_GROUPED_MATRIX_LAYOUT_ROWS_COLS_ARRAY_INTEGER_WIDTH: return set(layout->width, value, bytes);
    case CUBLASLT_GROUPED_MATRIX_LAYOUT_LD_ARRAY_INTEGER_WIDTH: return set(layout->ld_width, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType scale) {
  *desc = new cublasLtMatmulDescOpaque_t{compute, scale};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return set(desc->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(desc->transa, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(desc->transb, value, bytes);
    case CUBLASLT_MATMUL_DESC_ALPHA_BATCH_STRIDE: return set(desc->alpha_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_BETA_BATCH_STRIDE: return set(desc->beta_stride, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  const int which = attribute;
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return set(preference->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set(preference->alignment[which - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
    case CUBLASLT_MATMUL_PREF_GROUPED_AVERAGE_REDUCTION_DIM:
    case CUBLASLT_MATMUL_PREF_GROUPED_DESC_D_AVERAGE_ROWS:
    case CUBLASLT_MATMUL_PREF_GROUPED_DESC_D_AVERAGE_COLS:
      return set(preference->averages[which - CUBLASLT_MATMUL_PREF_GROUPED_AVERAGE_REDUCTION_DIM], value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
                                              cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* count) {
  *count = 0;
  if (!handle || requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
  if (spoils_captures_of_device()) return CUBLAS_STATUS_INTERNAL_ERROR;
  if (!is_supported(*desc, *A, *B, *C, *D)) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const Layout* layout : {A, B, C, D})
    if (!is_complete(*layout)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (preference->workspace < kWorkspace) return CUBLAS_STATUS_NOT_SUPPORTED;
  cublasLtMatmulHeuristicResult_t& found = results[0];
  found = {};
  found.algo.data[0] = kAlgorithm;
  for (size_t i = 0; i < 4; ++i) {
    if (preference->alignment[i] < kAlignment) return CUBLAS_STATUS_NOT_SUPPORTED;
    found.algo.data[1 + i] = preference->alignment[i];
  }
  found.workspaceSize = kWorkspace;
  found.state = CUBLAS_STATUS_SUCCESS;
  found.wavesCount = 1;
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* A,
                              cublasLtMatrixLayout_t Adesc, const void* B, cublasLtMatrixLayout_t Bdesc,
                              const void* beta, const void* C, cublasLtMatrixLayout_t Cdesc, void* D,
                              cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!algo || !is_supported(*desc, *Adesc, *Bdesc, *Cdesc, *Ddesc)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (algo->data[0] != kAlgorithm || workspace_bytes < kWorkspace) return CUBLAS_STATUS_INVALID_VALUE;
  for (const Layout* layout : {Adesc, Bdesc, Cdesc, Ddesc})
    if (!is_complete(*layout)) return CUBLAS_STATUS_INVALID_VALUE;
  if (!on_device({A, B, C, D, alpha, beta, workspace})) return CUBLAS_STATUS_INVALID_VALUE;
  if (reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment != 0) return CUBLAS_STATUS_INVALID_VALUE;
  if (usable() != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  Call call{*desc,
            static_cast<const float*>(alpha),
            static_cast<const float*>(beta),
            {*Adesc, *Bdesc, *Cdesc, *Ddesc},
            {A, B, C, D},
            {}};
  for (size_t i = 0; i < 4; ++i) call.alignment[i] = static_cast<uint32_t>(algo->data[1 + i]);
  std::vector<const void*> uses{A, B, C, D, alpha, beta, workspace};
  for (const Layout& layout : call.layouts) uses.insert(uses.end(), {layout.rows, layout.columns, layout.ld});
  const int device = queue_of(stream).device;
  count_gemm();
  enqueue_kernel(stream, [call, device] { run_groups(call, device); }, uses);
  return CUBLAS_STATUS_SUCCESS;
}
