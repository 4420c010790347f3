#pragma once
#include "cuda/blas.h"
#include "cuda/row_groups.cuh"

// Products of rows with the matrix of their group: one strided-batched GEMM of cuBLAS if the groups are equal, a
// grouped one if the host knows how many rows they have, else a plain kernel.
namespace st_moe::cuda {

// c [R, N] = a [R, K] · w, w [G, N, K] if transposed, else [G, K, N]. All K of w count, padding too; a may have more
// columns, and w and c more than N.
void multiply_rows(const Context& ctx, DType operands, DType result, const RowGroups& groups, const Matrix& a,
                   const Matrix& w, bool transposed, void* c, int64_t ldc, int64_t N);

// c [G, M, N] = aᵀ · b over the rows of each group, whose matrices are `apart` values apart in c; a and b may have more
// columns than M and N.
void multiply_over_rows(const Context& ctx, DType operands, DType result, const RowGroups& groups, const Matrix& a,
                        const Matrix& b, void* c, int64_t apart, int64_t M, int64_t N);

}  // namespace st_moe::cuda
