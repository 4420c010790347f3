#pragma once
#include <cstdint>
#include <vector>

#include "cuda/stream.h"

// Row-major products on cuBLAS, which is found and opened at run time.
namespace st_moe::cuda {

// C [M, N] = op(A) [M, K] · op(B) [K, N], `batch` times with strides in elements. Row-major; transposed operands are
// stored [K, M] and [N, K]. accumulate: C += instead of C =.
struct Product {
  int64_t M, N, K;
  const void *a, *b;
  void* c;
  int64_t lda, ldb, ldc;  // row strides as stored
  bool transpose_a = false, transpose_b = false, accumulate = false;
  int64_t batch = 1, a_stride = 0, b_stride = 0, c_stride = 0;
  bool exact = false;  // no TF32, whatever uses_tf32() says: the choice of experts hangs on it
};

// K = 0 writes zeros (nothing when accumulating). A and B are f32, f64, bf16 or f16, added up in f64 where they are f64
// and in f32 otherwise; C is of the same dtype, or f32. Throws Error.
void multiply(const Context& ctx, DType operands, DType result, const Product& product);

// Whether float32 products may round their operands to TF32: ST_MOE_TF32=1.
bool uses_tf32();

// A matrix that stands in memory as it is, one of a batch that follow each other.
struct Matrix {
  const void* data;
  int64_t rows, columns;
};

// Rows and columns of bf16 and f16 operands, and the columns of A that expert_ffn saves, are multiples of this.
constexpr int64_t kOperandMultiple = 64;

// Makes Stream::blas, and frees it.
void prepare_blas(Stream& stream);
void destroy_blas(Stream& stream) noexcept;

// Products of different sizes, which the host knows: one cublasGemmGroupedBatchedEx where cuBLAS has it for these types
// (12.5 and newer), else one after the other.
void multiply_grouped(const Context& ctx, DType operands, DType result, const std::vector<Product>& products);

}  // namespace st_moe::cuda
