#pragma once
#include "core/context.h"

namespace st_moe::cpu {

// 16-bit rows that are operands of a GEMM along their elements are followed by zeros up to a multiple of this.
constexpr int64_t kLowPadding = 32;

// A matrix by strides, in elements. element(i, j) = data[row(i)·row_stride + j·col_stride], where row(i) is rows[i] or
// i.
template <class T>
struct MatrixView {
  const T* data;
  int64_t row_stride, col_stride;
  const int32_t* rows = nullptr;
  // bf16 or f16: of elements that are in its 16 bits. In A it is `compute`. A blocked type: in B alone.
  DType type = sizeof(T) == sizeof(float) ? DType::f32 : DType::f64;
  const uint16_t* scales = nullptr;  // of blocks: those of the first element's row and on

  bool low() const { return dtype_size(type) == 2; }
  bool plain() const { return dtype_size(type) == sizeof(T); }
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
  bool low_c = false;           // C = rounded to `compute`, in its 16 bits; without accumulate and stream
};

// Rows of a low-precision type in 16 bits, to float32 and, rounded to nearest even, back.
struct LowPrecision {
  void (*widen)(const uint16_t* from, float* to, int64_t count);
  void (*round)(const float* from, uint16_t* to, int64_t count);
};

// GEMMs by instructions that multiply bf16. gemm.cc alone is compiled for these; everything else is that of a narrower
// instruction set, whose ops get them as Context::stream. Without them, bf16 operands are multiplied in float32.
struct Bf16Gemm {
  int64_t (*packed_size)(int64_t K, int64_t N);
  void (*pack_weights)(const Context&, const MatrixView<float>& b, int64_t batch, int64_t batch_stride, int64_t K,
                       int64_t N, float* out);
  void (*run)(const Context&, const GemmProblem<float>* problems, int64_t count);
  const LowPrecision* rows;  // null: operands are in float32
  const Bf16Gemm* sums;      // the same for `compute` bf16x3; null if that is not faster than float32
};

}  // namespace st_moe::cpu
