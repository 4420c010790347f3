#pragma once
#include "core/dropout.h"
#include "cuda/operands.cuh"
#include "cuda/per_step.cuh"
#include "cuda/plan.cuh"

namespace st_moe::cuda {

// The rows that the experts compute: those of a plan, full or empty; or, without a plan, the tokens as they are. All
// experts have equally many, so shapes do not depend on the routing. Empty rows of x are zero, but NaN in a weight
// spreads even to those: what adds up rows leaves them out or finds exact zeros there.
struct ExpertRows {
  Plan plan;
  bool planned;     // false: row t is token t
  int64_t E, each;  // rows of one expert
  Divisor by_each{each};

  int64_t count() const { return E * each; }

  // c [rows, N] = a [rows, K] · w, w [E, N, K] if transposed, else [E, K, N]. All of a's columns count, padding too;
  // w and c may have more than N.
  Gemm of_rows(const Matrix& a, const Matrix& w, bool transposed, void* c, int64_t ldc, int64_t N) const {
    Gemm p{each, N, a.columns, a.data, w.data, c, a.columns, w.columns, ldc};
    p.transpose_b = transposed;
    p.batch = E, p.a_stride = each * a.columns, p.b_stride = w.rows * w.columns, p.c_stride = each * ldc;
    return p;
  }

  // c [E, M, N] = aᵀ · b over the rows of each expert; a and b may have more columns than M and N
  Gemm over_rows(const Matrix& a, const Matrix& b, void* c, int64_t M, int64_t N) const {
    Gemm p{M, N, each, a.data, b.data, c, a.columns, b.columns, N};
    p.transpose_a = true;
    p.batch = E, p.a_stride = each * a.columns, p.b_stride = each * b.columns, p.c_stride = M * N;
    return p;
  }
};

// A bias vector of each expert, or none.
template <class T>
struct ExpertBias {
  const T* values;
  int64_t width;
  __device__ const T* of(int64_t expert) const { return values ? values + expert * width : nullptr; }
};

// N values of a bias from column j on; where there is none, its neutral value.
template <int N, class T>
__device__ static inline Vector<T, N> load_bias(const T* bias, int64_t j, T neutral) {
  if (bias) return load<N>(bias + j);
  Vector<T, N> values;
  for (int c = 0; c < N; ++c) values[c] = neutral;
  return values;
}

// Dropout of the hidden values of experts, which have a row for each assignment.
template <class T>
struct HiddenDropout {
  Sample sample;
  DropoutNumbers<T> numbers;
  int64_t H;
  bool active;

  template <class Args>
  static HiddenDropout of(const Context& ctx, const Args& args) {
    return {sample_of(ctx, args.seed, args.step), DropoutNumbers<T>::of(args.dropout), args.H, args.dropout > 0};
  }
  // The words of N values of an assignment from column j on.
  template <int N>
  __device__ Vector<uint32_t, N> words(int64_t assignment, int64_t j) const {
    Vector<uint32_t, N> values{};
    for (int c = 0; active && c < N; ++c) values[c] = sample.word(static_cast<uint64_t>(assignment * H + j + c));
    return values;
  }
  __device__ T operator()(T x, uint32_t word) const { return active ? numbers(x, word) : x; }
};

// Columns of A as it is saved: pre-activations without their bias in the first `columns`.
static inline int64_t saved_columns(int64_t columns) {
  return ceil_div(columns, kOperandMultiple) * kOperandMultiple;
}

template <class Args>
ExpertRows expert_rows_of(const Context& ctx, const Args& args) {
  if (args.ends) fail(ErrorCode::unsupported, "a plan with `ends` is for the CPU: a GPU has equal rows per expert");
  const bool planned = args.assignment || args.R == 0;
  if (!planned && (args.E < 1 || args.K != 1 || args.R != args.T || args.R % args.E != 0))
    fail(ErrorCode::option,
         "without a plan there must be one choice and a row for each token, equally many per expert");
  return {plan_of(ctx, args, args.assignment), planned, args.E, args.E > 0 ? args.R / args.E : 0};
}

// The token of a row, as the source row of an operand.
struct PlannedToken {
  Plan plan;
  __device__ int64_t operator()(int64_t row) const {
    const int64_t assignment = plan.assignment_of(row);
    return assignment < 0 ? -1 : plan.token_of(assignment);
  }
};

}  // namespace st_moe::cuda
