#include "cuda/cublas_api.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/convert.h"
#include "emulator/counting.h"
#include "emulator/fault.h"
#include "emulator/runtime_device.h"
#include "emulator/streams.h"

// Column-major GEMMs with the argument checks of cuBLAS. C is not read where beta is 0, and A and B are not where
// alpha is.
struct cublasContext {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;  // the caller's; without one, a GEMM allocates
};

using namespace simt;

namespace {

// Ten bits after the point, rounded to nearest.
float round_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct Gemm {
  cublasOperation_t transa, transb;
  int m, n, k;
  double alpha, beta;
  const void *A, *B;
  void* C;
  int lda, ldb, ldc;
  cudaDataType type, C_type;
  bool tf32;
};

size_t bytes_of(cudaDataType type) {
  return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
}

double load(const void* from, size_t i, cudaDataType type) {
  switch (type) {
    case CUDA_R_64F: return static_cast<const double*>(from)[i];
    case CUDA_R_32F: return static_cast<const float*>(from)[i];
    case CUDA_R_16BF: return st_moe::bf16_to_float(static_cast<const uint16_t*>(from)[i]);
    case CUDA_R_16F: return st_moe::f16_to_float(static_cast<const uint16_t*>(from)[i]);
  }
  return 0;
}

void store(void* to, size_t i, cudaDataType type, double value) {
  const float rounded = static_cast<float>(value);
  switch (type) {
    case CUDA_R_64F: static_cast<double*>(to)[i] = value; break;
    case CUDA_R_32F: static_cast<float*>(to)[i] = rounded; break;
    case CUDA_R_16BF: static_cast<uint16_t*>(to)[i] = st_moe::float_to_bf16(rounded); break;
    case CUDA_R_16F: static_cast<uint16_t*>(to)[i] = st_moe::float_to_f16(rounded); break;
  }
}

bool types_fit(cudaDataType a, cudaDataType b, cudaDataType c, cublasComputeType_t compute) {
  if (a != b) return false;
  if (compute == CUBLAS_COMPUTE_64F) return a == CUDA_R_64F && c == a;
  if (a == CUDA_R_64F || c == CUDA_R_64F) return false;
  return c == a || (c == CUDA_R_32F && compute != CUBLAS_COMPUTE_32F_FAST_TF32);
}

bool sizes_fit(const Gemm& g) {
  const int a_rows = g.transa == CUBLAS_OP_N ? g.m : g.k, b_rows = g.transb == CUBLAS_OP_N ? g.k : g.n;
  return g.m >= 0 && g.n >= 0 && g.k >= 0 && g.lda >= std::max(1, a_rows) && g.ldb >= std::max(1, b_rows) &&
         g.ldc >= std::max(1, g.m);
}

enum class Sums { interleaved, sequential, fma };

// SIMT_SUMS: cuBLAS guarantees no summation order, and that of a GPU differs from the CPU's.
Sums sums() {
  static const Sums kind = is("SIMT_SUMS", "fma")          ? Sums::fma
                           : is("SIMT_SUMS", "sequential") ? Sums::sequential
                                                           : Sums::interleaved;
  return kind;
}

// In the precision of the GEMM: eight interleaved partial sums, one sum in order, or the same with fused multiply-adds.
template <class T>
T dot(const T* a, const T* b, int k) {
  T part[8] = {};
  int p = 0;
  switch (sums()) {
    case Sums::sequential:
      for (; p < k; ++p) part[0] += a[p] * b[p];
      return part[0];
    case Sums::fma:
      for (; p < k; ++p) part[0] = std::fma(a[p], b[p], part[0]);
      return part[0];
    case Sums::interleaved: break;
  }
  for (; p + 8 <= k; p += 8)
    for (int i = 0; i < 8; ++i) part[i] += a[p + i] * b[p + i];
  for (; p < k; ++p) part[p % 8] += a[p] * b[p];
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// Whether a GEMM may be queued on the stream; allocations of cuBLAS itself cannot be captured.
cublasStatus_t ready(cublasHandle_t handle) {
  if (usable() != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  return !handle->workspace && spoils_capture(handle->stream) ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}

bool is_aligned(const Gemm& g) {
  const int vector = g.tf32 ? 4 : bytes_of(g.type) == 2 ? 8 : 0;
  if (vector == 0 || g.k % vector != 0) return true;
  return ((reinterpret_cast<uintptr_t>(g.A) | reinterpret_cast<uintptr_t>(g.B)) & 15) == 0;
}

template <class T>
void run(const Gemm& g) {
  const auto m = static_cast<size_t>(g.m), n = static_cast<size_t>(g.n), k = static_cast<size_t>(g.k);
  const auto lda = static_cast<size_t>(g.lda), ldb = static_cast<size_t>(g.ldb), ldc = static_cast<size_t>(g.ldc);
  std::vector<T> a(m * k), column(k);
  const auto operand = [&](double value) {
    return static_cast<T>(g.tf32 ? static_cast<double>(round_to_tf32(static_cast<float>(value))) : value);
  };
  for (size_t i = 0; i < m; ++i)
    for (size_t p = 0; p < k; ++p)
      a[i * k + p] = operand(load(g.A, g.transa == CUBLAS_OP_N ? i + p * lda : p + i * lda, g.type));
  for (size_t j = 0; j < n; ++j) {
    for (size_t p = 0; p < k; ++p)
      column[p] = operand(load(g.B, g.transb == CUBLAS_OP_N ? p + j * ldb : j + p * ldb, g.type));
    for (size_t i = 0; i < m; ++i) {
      T value = static_cast<T>(g.alpha) * dot(a.data() + i * k, column.data(), g.k);
      const size_t at = i + j * ldc;
      if (g.beta != 0) value += static_cast<T>(g.beta) * static_cast<T>(load(g.C, at, g.C_type));
      store(g.C, at, g.C_type, value);
    }
  }
}

void run_typed(const Gemm& g) {
  g.type == CUDA_R_64F ? run<double>(g) : run<float>(g);
}

const char* name_of(cudaDataType type) {
  return type == CUDA_R_64F ? "f64" : type == CUDA_R_32F ? "f32" : type == CUDA_R_16BF ? "bf16" : "f16";
}

double products_of(const Gemm& g) {
  return static_cast<double>(g.m) * g.n * g.k;
}

double bytes_moved(const Gemm& g) {
  const double m = g.m, n = g.n, k = g.k, in = static_cast<double>(bytes_of(g.type));
  const double out = static_cast<double>(bytes_of(g.C_type)) * (g.beta != 0 ? 2 : 1);
  return (m * k + k * n) * in + m * n * out;
}

std::string types_of(const Gemm& g) {
  return std::string(name_of(g.type)) + " → " + name_of(g.C_type);
}

// Counts equal GEMMs. Returns whether that is all, since they are large.
bool counted(const Gemm& g, int count) {
  if constexpr (!kCounting) return false;
  count_gemm(g.m, g.n, g.k, count, types_of(g).c_str(), count * bytes_moved(g));
  return only_counted_products(products_of(g) * count);
}

// The same of a grouped GEMM, which is not empty.
bool counted(const std::vector<Gemm>& gemms) {
  if constexpr (!kCounting) return false;
  double products = 0, bytes = 0;
  for (const Gemm& g : gemms) products += products_of(g), bytes += bytes_moved(g);
  count_groups(gemms.size(), 2 * products, types_of(gemms[0]).c_str(), bytes);
  return only_counted_products(products);
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
      run_typed(gemm);
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
      run_typed(gemms[i]);
    }
  };
  simt::enqueue_kernel(handle->stream, run_all, {Aarray, Barray, Carray, handle->workspace});
  return CUBLAS_STATUS_SUCCESS;
}
