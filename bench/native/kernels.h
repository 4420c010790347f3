#pragma once
#include <cstdint>
#include <vector>

#include "core/backend.h"

// What of the CPU is measured below the table of ops. kernels.cc is compiled once per instruction set, as the ops are.
namespace st_moe::bench {

// The GEMMs of GEGLU experts: forward A = X·W1ᵀ and Y = H·W2ᵀ; backward dH = dY·W2, dX = dA·W1, dW1 = dAᵀ·X,
// dW2 = dYᵀ·H.
enum class Gemm { a, y, dh, dx, dw1, dw2 };
constexpr Gemm kGemms[] = {Gemm::a, Gemm::y, Gemm::dh, Gemm::dx, Gemm::dw1, Gemm::dw2};
constexpr const char* kGemmNames[] = {"a", "y", "dh", "dx", "dw1", "dw2"};

struct Operand {
  const float* data;
  int64_t row, column;  // strides
};

struct ExpertGemm {  // C [M, N] = A [M, K] · B [K, N]
  int64_t M, N, K;
  Operand a, b;
  float* c;
  const float* packed_b = nullptr;  // as Kernels::pack wrote it, or null
};

struct GroupedGemm {
  // `rows` of each expert follow each other in a, and in c or, for the gradient of a weight, in b.
  GroupedGemm(Gemm gemm, int64_t D, int64_t H, const std::vector<int64_t>& rows, const float* a, const float* b,
              float* c, DType compute);

  Gemm gemm;
  DType compute;
  bool weight_gradient;  // both operands are activations: nothing can be packed before
  std::vector<ExpertGemm> experts;
};

struct Kernels {
  void (*gemm)(const Context&, const GroupedGemm&);
  int64_t (*packed_size)(const GroupedGemm&);  // floats of one expert's packed weights; 0: there is no such copy
  void (*pack)(const Context&, const GroupedGemm&, float* out);
  double (*multiply_add)(int64_t rounds);  // flops of one call; nothing but fused multiply-adds in registers
  double (*bf16_dot)(int64_t rounds);      // of bf16, added in f32; null without such instructions
  float (*read)(const float* data, int64_t count);
};

// Of the instruction set that the CPU backend has chosen. Throws if this program was not built with it.
const Kernels& kernels();

}  // namespace st_moe::bench
