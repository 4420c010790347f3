#include "cuda/blas.h"
#include "cuda/columns.cuh"
#include "cuda/ops.h"

namespace st_moe::cuda {

constexpr int kBiasColumns = kWarp, kBiasRows = kBlock / kWarp;

// y [T, O] += bias [O]
template <class T>
__global__ void __launch_bounds__(kBlock) add_bias_kernel(int64_t rows, int64_t columns, const T* bias, T* y) {
  const int64_t row0 = blockIdx.y * int64_t{kBiasRows} + threadIdx.y;
  for (int64_t column = blockIdx.x * int64_t{kBiasColumns} + threadIdx.x; column < columns;
       column += int64_t{gridDim.x} * kBiasColumns) {
    const T value = bias[column];
    for (int64_t row = row0; row < rows; row += int64_t{gridDim.y} * kBiasRows) y[row * columns + column] += value;
  }
}

template <class T>
static void add_bias(const Context& ctx, int64_t rows, int64_t columns, const void* bias, void* y) {
  constexpr int64_t rows_per_block = 4 * kBiasRows;  // a thread adds one bias to a few rows
  const dim3 grid(grid_for(columns, kBiasColumns), grid_for(rows, rows_per_block));
  launch(ctx, add_bias_kernel<T>, grid, dim3(kBiasColumns, kBiasRows), 0, rows, columns, static_cast<const T*>(bias),
         static_cast<T*>(y));
}

void linear(const Context& ctx, const LinearArgs& args) {
  if (args.T == 0 || args.O == 0) return;
  Product p{};
  p.M = args.T, p.N = args.O, p.K = args.I;
  p.a = args.x, p.b = args.w, p.c = args.y;
  p.lda = p.ldb = args.I < 1 ? 1 : args.I;
  p.ldc = args.O;
  p.transpose_b = true;
  if (args.compute != args.dtype) fail(ErrorCode::unsupported, "compute dtype %s", dtype_name(args.compute));
  dispatch_float(args.dtype, [&](auto zero) {
    multiply(ctx, args.dtype, p);
    if (args.bias) add_bias<decltype(zero)>(ctx, args.T, args.O, args.bias, args.y);
  });
}

// dx [T, I] = dy [T, O] · w [O, I]
static void input_gradient(const Context& ctx, const LinearBackwardArgs& args) {
  if (args.T == 0 || args.I == 0) return;
  Product p{};
  p.M = args.T, p.N = args.I, p.K = args.O;
  p.a = args.dy, p.b = args.w, p.c = args.dx;
  p.lda = args.O < 1 ? 1 : args.O;
  p.ldb = p.ldc = args.I;
  multiply(ctx, args.dtype, p);
}

// dw [O, I] = dyᵀ · x
static void weight_gradient(const Context& ctx, const LinearBackwardArgs& args) {
  if (args.O == 0 || args.I == 0) return;
  Product p{};
  p.M = args.O, p.N = args.I, p.K = args.T;
  p.a = args.dy, p.b = args.x, p.c = args.dw;
  p.lda = args.O;
  p.ldb = p.ldc = args.I;
  p.transpose_a = true;
  multiply(ctx, args.dtype, p);
}

void linear_backward(const Context& ctx, const LinearBackwardArgs& args) {
  if (args.compute != args.dtype) fail(ErrorCode::unsupported, "compute dtype %s", dtype_name(args.compute));
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.dx) input_gradient(ctx, args);
    if (args.dw) weight_gradient(ctx, args);
    if (args.dbias) {
      sum_columns(ctx, 1, args.T, args.O, static_cast<const T*>(args.dy), static_cast<T*>(args.dbias));
    }
  });
}

}  // namespace st_moe::cuda
