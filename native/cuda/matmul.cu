#include "core/ops/layers.h"
#include "cuda/blas.h"
#include "cuda/kernel.cuh"

namespace st_moe::cuda {

// The row stride of a matrix stored [rows, columns]; cuBLAS needs a positive one.
static int64_t row_stride(int64_t columns) {
  return columns < 1 ? 1 : columns;
}

void matmul(const Context& ctx, const MatmulArgs& args) {
  if (args.batch <= 0 || args.M == 0 || args.N == 0) return;
  Gemm p{};
  p.M = args.M, p.N = args.N, p.K = args.K;
  p.a = args.a, p.b = args.b, p.c = args.y;
  p.transpose_a = args.transpose_a != 0, p.transpose_b = args.transpose_b != 0;
  p.lda = row_stride(p.transpose_a ? args.M : args.K);
  p.ldb = row_stride(p.transpose_b ? args.K : args.N);
  p.ldc = args.N;
  p.batch = args.batch;
  p.a_stride = args.a_batch_stride, p.b_stride = args.b_batch_stride, p.c_stride = args.M * args.N;
  dispatch_float(args.dtype, [&](auto) { multiply(ctx, args.dtype, args.dtype, p); });
}

}  // namespace st_moe::cuda
