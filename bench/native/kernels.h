#pragma once
#include <cstdint>
#include <vector>

#include "core/backend.h"

// What is measured below the table of ops. kernels.cc is compiled once for each instruction set, as the ops are.
namespace st_moe::bench {

// The products of E GEGLU experts: forward A = X·W1ᵀ and Y = H·W2ᵀ; backward dH = dY·W2, dX = dA·W1, dW1 = dAᵀ·X,
// dW2 = dYᵀ·H.
enum class Product { a, y, dh, dx, dw1, dw2 };
constexpr Product kProducts[] = {Product::a, Product::y, Product::dh, Product::dx, Product::dw1, Product::dw2};
const char* product_name(Product product);

// A product of rows and weights is C [rows, N] = A [rows, K] · W, W [N, K] (transposed) or [K, N]; a weight gradient is
// C [M, N] = Aᵀ · B, A [rows, M], B [rows, N].
struct ProductShape {
  int64_t rows_of_c;  // M of a weight gradient; else 0: as many as there are rows
  int64_t N, K;       // K 0: the rows
  bool transposed;    // W is [N, K]
};
ProductShape shape_of(Product product, int64_t D, int64_t H);

struct ProductArgs {
  Product product;
  int64_t D, H;
  std::vector<int64_t> rows;  // of each expert; they follow each other
  const float *a, *b;
  float* c;
  DType compute;
  const float* packed = nullptr;  // the weights as Kernels::pack wrote them, or null
};

struct Kernels {
  void (*run_product)(const Context&, const ProductArgs&);
  int64_t (*packed_size)(const ProductArgs&);  // floats of one expert's packed weights; 0: there is no such copy
  void (*pack)(const Context&, const ProductArgs&, float* out);
  double (*multiply_add)(int64_t rounds);  // flops of one call; nothing but fused multiply-adds in registers
  float (*read)(const float* data, int64_t count);
  bool fused;  // the instruction set has fused multiply-add
};

// Of the instruction set that the backend has chosen. Null for one that this program was not built with.
const Kernels* kernels_for(const char* variant);

// Products of bf16 pairs added in f32 (AVX512-BF16), in registers.
bool has_bf16_dot();
double bf16_dot(int64_t rounds);  // flops

}  // namespace st_moe::bench
