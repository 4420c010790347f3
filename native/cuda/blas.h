#pragma once
#include <cstdint>

#include "cuda/stream.h"

// Row-major products on cuBLAS, which is found and opened at run time.
namespace st_moe::cuda {

// C [M, N] = op(A) [M, K] · op(B) [K, N], `batch` times with strides in elements. Row-major; transposed operands are
// stored [K, M] and [N, K]. f32 or f64. accumulate: C += instead of C =.
struct Product {
  int64_t M, N, K;
  const void *a, *b;
  void* c;
  int64_t lda, ldb, ldc;  // row strides as stored
  bool transpose_a = false, transpose_b = false, accumulate = false;
  int64_t batch = 1, a_stride = 0, b_stride = 0, c_stride = 0;
};

// K = 0 writes zeros (nothing when accumulating). Throws Error.
void multiply(const Context& ctx, DType dtype, const Product& product);

// Frees Stream::blas.
void destroy_blas(void* handle) noexcept;

// For groups of different sizes, which the host knows: one cublasGemmGroupedBatchedEx.
void multiply_grouped(const Context& ctx, DType dtype, const Product* products, int64_t count);

}  // namespace st_moe::cuda
