#pragma once
#include <cstdint>
#include <vector>

#include "core/backend.h"

// What of the CPU is measured below the table of ops. kernels.cc is compiled once per instruction set, as the ops are.
namespace st_moe::bench {

// The GEMMs of GEGLU experts: forward A = X·W1ᵀ and Y = H·W2ᵀ; backward dH = dY·W2, dX = dA·W1, dW1 = dAᵀ·X, dW2 =
// dYᵀ·H.
enum class Gemm { a, y, dh, dx, dw1, dw2 };
constexpr Gemm kGemms[] = {Gemm::a, Gemm::y, Gemm::dh, Gemm::dx, Gemm::dw1, Gemm::dw2};

// Rows times weights: C [rows, N] = A [rows, K] · W, W [N, K] (transposed) or [K, N]. A weight gradient:
// C [M, N] = Aᵀ · B over the rows, A [rows, M], B [rows, N].
struct GemmShape {
  int64_t M;     // of a weight gradient; else 0: as many as there are rows
  int64_t N, K;  // K 0: the rows
  bool transposed;
};

struct GemmArgs {
  Gemm gemm;
  int64_t D, H;
  std::vector<int64_t> rows;  // of each expert; they follow each other
  const float *a = nullptr, *b = nullptr;
  float* c = nullptr;
  DType compute = DType::f32;
  const float* packed = nullptr;  // the weights as Kernels::pack wrote them, or null

  GemmShape shape() const;
  bool weight_gradient() const { return shape().M > 0; }
};

struct Kernels {
  void (*gemm)(const Context&, const GemmArgs&);
  int64_t (*packed_size)(const GemmArgs&);  // floats of one expert's packed weights; 0: there is no such copy
  void (*pack)(const Context&, const GemmArgs&, float* out);
  double (*multiply_add)(int64_t rounds);  // flops of one call; nothing but fused multiply-adds in registers
  float (*read)(const float* data, int64_t count);
};

// Of the instruction set that the CPU backend has chosen. Throws if this program was not built with it.
const Kernels& kernels();

}  // namespace st_moe::bench
