#include "core/ops/layers.h"
#include "cuda/columns.cuh"
#include "cuda/operands.cuh"

namespace st_moe::cuda {

// Row of y [T, O] += bias [O]
template <class T, int N>
struct AddBias {
  const T* bias;
  T* y;
  int64_t O;

  template <class Lanes>
  __device__ void operator()(int64_t t, Lanes lanes) const {
    T* row = y + t * O;
    write_row<N>(row, O, lanes, [&](int64_t j) {
      Vector<T, N> values = load<N>(row + j);
      const Vector<T, N> add = load<N>(bias + j);
      for (int c = 0; c < N; ++c) values[c] += add[c];
      return values;
    });
  }
};

template <class T>
static void add_bias(const Context& ctx, int64_t rows, int64_t columns, const T* bias, T* y) {
  dispatch_width<vector_width<T>>(columns, aligned(bias, y),
                                  [&](auto n) { for_rows(ctx, rows, columns, AddBias<T, n>{bias, y, columns}); });
}

template <class T, class O>
static void forward(const Context& ctx, const LinearArgs& args) {
  const OperandRows<T, O> x(ctx, args.x, args.T, args.I);
  OperandWeight<T, O> w(ctx, args.w, args.w_stored, args.compute, 1, args.O, args.I, args.w_packed);
  fill_operands(ctx, x.fill(), w.fill());
  w.filled();
  const int64_t K = x.get().columns;
  Gemm p{args.T, args.O, K, x.get().data, w.get().data, args.y, K, K, args.O};
  p.transpose_b = true;
  multiply(ctx, args.compute, args.dtype, p);
  if (args.bias) add_bias(ctx, args.T, args.O, static_cast<const T*>(args.bias), static_cast<T*>(args.y));
}

void linear(const Context& ctx, const LinearArgs& args) {
  if (args.T == 0 || args.O == 0) return;
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { forward<decltype(zero), decltype(operand)>(ctx, args); });
}

// dx [T, I] = dy [T, O] · w [O, I], or dx_sum += that
static void input_gradient(const Context& ctx, const LinearBackwardArgs& args, const Matrix& dy, const Matrix& w) {
  void* to = args.dx ? args.dx : args.dx_sum;
  Gemm p{args.T, args.I, dy.columns, dy.data, w.data, to, dy.columns, w.columns, args.I};
  p.accumulate = args.dx_sum != nullptr;
  multiply(ctx, args.compute, args.dtype, p);
}

// dw [O, I] = dyᵀ · x
static void weight_gradient(const Context& ctx, const LinearBackwardArgs& args, const Matrix& dy, const Matrix& x) {
  Gemm p{args.O, args.I, args.T, dy.data, x.data, args.dw, dy.columns, x.columns, args.I};
  p.transpose_a = true;
  multiply(ctx, args.compute, args.dtype, p);
}

template <class T, class O>
static void backward(const Context& ctx, const LinearBackwardArgs& args) {
  const bool wants_dx = args.dx || args.dx_sum, products = wants_dx || args.dw;
  const OperandRows<T, O> dy(ctx, args.dy, products ? args.T : 0, args.O);
  const OperandRows<T, O> x(ctx, args.x, args.dw ? args.T : 0, args.I);
  OperandWeight<T, O> w(ctx, args.w, args.w_stored, args.compute, wants_dx ? 1 : 0, args.O, args.I,
                        wants_dx ? args.w_packed : nullptr);
  fill_operands(ctx, dy.fill(), x.fill(), w.fill());
  w.filled();
  if (wants_dx) input_gradient(ctx, args, dy.get(), w.get());
  if (args.dw) weight_gradient(ctx, args, dy.get(), x.get());
  if (args.dbias) {
    sum_columns(ctx, 1, args.T, args.O, static_cast<const T*>(args.dy), static_cast<T*>(args.dbias));
  }
}

void linear_backward(const Context& ctx, const LinearBackwardArgs& args) {
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { backward<decltype(zero), decltype(operand)>(ctx, args); });
}

}  // namespace st_moe::cuda
