#pragma once
#include <cstdint>
#include <vector>

#include "cuda/stream.h"

// Row-major GEMMs on cuBLAS, which is loaded at run time.
namespace st_moe::cuda {

// C [M, N] = op(A) [M, K] · op(B) [K, N], `batch` times with strides in elements. Row-major; transposed operands are
// stored [K, M] and [N, K]. accumulate: C += instead of C =.
struct Gemm {
  int64_t M, N, K;
  const void *a, *b;
  void* c;
  int64_t lda, ldb, ldc;  // row strides as stored
  bool transpose_a = false, transpose_b = false, accumulate = false;
  int64_t batch = 1, a_stride = 0, b_stride = 0, c_stride = 0;
  bool exact = false;  // never TF32, because expert selection depends on it
};

// K = 0 writes zeros (nothing when accumulating). A and B are f32, f64, bf16 or f16, accumulated in f64 for f64 and
// else in f32; C has the same dtype, or f32. Throws Error.
void multiply(const Context& ctx, DType operands, DType result, const Gemm& product);

// Whether float32 GEMMs may round their operands to TF32: ST_MOE_TF32=1.
bool uses_tf32();

// A matrix as stored in memory, one of a contiguous batch.
struct Matrix {
  const void* data;
  int64_t rows, columns;
};

// Rows and columns of bf16 and f16 operands are multiples of this.
constexpr int64_t kOperandMultiple = 64;

// Creates and frees Stream::blas.
void prepare_blas(Stream& stream);
void destroy_blas(Stream& stream) noexcept;

// Grouped GEMM with sizes known to the host: one cublasGemmGroupedBatchedEx if cuBLAS has it for these types (12.5 or
// newer), else one GEMM after the other.
void multiply_grouped(const Context& ctx, DType operands, DType result, const std::vector<Gemm>& products);

}  // namespace st_moe::cuda
