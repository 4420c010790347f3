#include "core/ops/layers.h"
#include "cpu/gemm.h"
#include "cpu/packed_weights.h"
#include "cpu/simd.h"

namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kSumColumns = 64, kSumRows = 128;

// out [cols] = Σ over rows of x [rows, cols]. Adds sums of 128 rows in order: less error than one long chain.
template <class T>
static void sum_columns(const Context& ctx, const T* x, int64_t rows, int64_t cols, T* out) {
  parallel_blocks(ctx, cols, kSumColumns, [&](int64_t begin, int64_t end) {
    T total[kSumColumns] = {}, part[kSumColumns];
    const int64_t width = end - begin;
    for (int64_t row0 = 0; row0 < rows; row0 += kSumRows) {
      const int64_t row1 = min_of(rows, row0 + kSumRows);
      for (int64_t j = 0; j < width; ++j) part[j] = 0;
      for (int64_t i = row0; i < row1; ++i) {
        const T* row = x + i * cols + begin;
        for (int64_t j = 0; j < width; ++j) part[j] += row[j];
      }
      for (int64_t j = 0; j < width; ++j) total[j] += part[j];
    }
    for (int64_t j = 0; j < width; ++j) out[begin + j] = total[j];
  });
}

template <class T>
static void linear_forward(const Context& ctx, const LinearArgs& args) {
  GemmProblem<T> p{};
  p.M = args.T, p.N = args.O, p.K = args.I;
  p.a = {static_cast<const T*>(args.x), args.I, 1};
  p.b = weights_of<T>(args.w, args.w_stored, 1, args.I, args.O * args.I);
  p.c = static_cast<T*>(args.y);
  p.c_stride = args.O;
  p.bias = static_cast<const T*>(args.bias);
  p.packed_b = PackedWeights<T>(ctx, args.w_packed, p.b, 1, 0, p.K, p.N, args.compute).at(0);
  gemm(ctx, &p, 1, args.compute);
}

template <class T>
static void linear_gradients(const Context& ctx, const LinearBackwardArgs& args) {
  const T* dy = static_cast<const T*>(args.dy);
  if (args.dx || args.dx_sum) {
    GemmProblem<T> p{};
    p.M = args.T, p.N = args.I, p.K = args.O;
    p.a = {dy, args.O, 1};
    p.b = weights_of<T>(args.w, args.w_stored, args.I, 1, args.O * args.I);
    p.c = static_cast<T*>(args.dx ? args.dx : args.dx_sum);
    p.accumulate = args.dx_sum != nullptr;
    p.c_stride = args.I;
    p.packed_b = PackedWeights<T>(ctx, args.w_packed, p.b, 1, 0, p.K, p.N, args.compute).at(0);
    gemm(ctx, &p, 1, args.compute);
  }
  if (args.dw) {
    GemmProblem<T> p{};
    p.M = args.O, p.N = args.I, p.K = args.T;
    p.a = {dy, 1, args.O};
    p.b = {static_cast<const T*>(args.x), args.I, 1};
    p.c = static_cast<T*>(args.dw);
    p.c_stride = args.I;
    gemm(ctx, &p, 1, args.compute);
  }
  if (args.dbias) sum_columns(ctx, dy, args.T, args.O, static_cast<T*>(args.dbias));
}

void linear(const Context& ctx, const LinearArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { linear_forward<decltype(zero)>(ctx, args); });
}

void linear_backward(const Context& ctx, const LinearBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) { linear_gradients<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
