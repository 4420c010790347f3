#pragma once
#include "core/backend.h"

namespace st_moe::cpu {

// A matrix by strides, in elements. element(i, j) = data[row(i)·row_stride + j·col_stride], where row(i) is rows[i] or
// i.
template <class T>
struct MatrixView {
  const T* data;
  int64_t row_stride, col_stride;
  const int32_t* rows = nullptr;
};

template <class T>
struct GemmProblem {  // C [M, N] (+)= A [M, K] · B [K, N] (+ bias [N])
  int64_t M, N, K;
  MatrixView<T> a, b;  // one stride of each is 1; a.rows gathers by m, b.rows gathers by k
  T* c;
  int64_t c_stride;             // row stride of C
  const T* bias = nullptr;      // added to each row
  bool accumulate = false;      // C += instead of C =
  bool stream = false;          // C bypasses the caches: for large results that are not read soon
  const T* packed_b = nullptr;  // the elements of b as pack_weights wrote them for the same `compute`, or null
};

// GEMMs by instructions that multiply bf16. gemm.cc alone is compiled for these; everything else is that of a narrower
// instruction set, whose ops get them as Context::stream. Without them, bf16 operands are multiplied in float32.
struct Bf16Gemm {
  int64_t (*packed_size)(int64_t K, int64_t N);
  void (*pack_weights)(const Context&, const MatrixView<float>& b, int64_t batch, int64_t batch_stride, int64_t K,
                       int64_t N, float* out);
  void (*run)(const Context&, const GemmProblem<float>* problems, int64_t count);
};

}  // namespace st_moe::cpu
