#pragma once
#include <cstddef>
#include <vector>

#include "cuda/cublas_api.h"

// A column-major GEMM as the stand-ins of cuBLAS and cuBLASLt run it. C is not read where beta is 0, and A and B are
// not where alpha is.
namespace simt {

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

size_t bytes_of(cudaDataType type);
double load(const void* from, size_t i, cudaDataType type);

bool sizes_fit(const Gemm& gemm);

// Tensor cores read 16 bytes at a time.
bool is_aligned(const Gemm& gemm);

void run(const Gemm& gemm);

// Counts equal GEMMs, or the parts of a grouped one, which is not empty. Returns whether that is all, since they are
// large.
bool counted(const Gemm& gemm, int count);
bool counted(const std::vector<Gemm>& gemms);

}  // namespace simt
