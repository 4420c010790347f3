#pragma once
#include "cuda/assignments.cuh"
#include "cuda/operands.cuh"

namespace st_moe::cuda {

// The rows that the experts compute: a row for each slot [E, B, C], full or empty; or the tokens as they are, with one
// expert and no routing. All experts have equally many, so shapes do not depend on the routing. Empty rows of x are
// zero, but NaN in a weight spreads even to those: what adds up rows leaves them out or finds exact zeros there.
struct ExpertRows {
  Assignments assignments;
  bool slots;    // false: row t is token t
  int64_t each;  // rows of one expert

  int64_t count() const { return assignments.E * each; }

  // c [rows, N] = a [rows, K] · w, w [E, N, K] if transposed, else [E, K, N]. All of a's columns count, padding too;
  // w and c may have more than N.
  Product of_rows(const Matrix& a, const Matrix& w, bool transposed, void* c, int64_t ldc, int64_t N) const {
    Product p{each, N, a.columns, a.data, w.data, c, a.columns, w.columns, ldc};
    p.transpose_b = transposed;
    p.batch = assignments.E, p.a_stride = each * a.columns, p.b_stride = w.rows * w.columns, p.c_stride = each * ldc;
    return p;
  }

  // c [E, M, N] = aᵀ · b over the rows of each expert; a and b may have more columns than M and N
  Product over_rows(const Matrix& a, const Matrix& b, void* c, int64_t M, int64_t N) const {
    Product p{M, N, each, a.data, b.data, c, a.columns, b.columns, N};
    p.transpose_a = true;
    p.batch = assignments.E, p.a_stride = each * a.columns, p.b_stride = each * b.columns, p.c_stride = M * N;
    return p;
  }
};

// Columns of A as it is saved: pre-activations without their bias in the first `columns`.
static inline int64_t saved_columns(int64_t columns) {
  return ceil_div(columns, kOperandMultiple) * kOperandMultiple;
}

template <class Args>
ExpertRows expert_rows_of(const Context& ctx, const Args& args) {
  check_assignment_count(args.T, args.K);
  const bool slots = args.expert_index || args.T == 0;
  if (!slots && (args.E != 1 || args.K != 1 || args.rows < args.T))
    fail(ErrorCode::option, "without indices there must be one expert, one choice and a row for each token");
  if (slots && args.rows != args.E * args.B * args.C)
    fail(ErrorCode::option, "there must be a row for each of the %lld slots, got %lld rows",
         static_cast<long long>(args.E * args.B * args.C), static_cast<long long>(args.rows));
  const int64_t N = args.B > 0 ? args.T / args.B : 0;
  const Assignments assignments{slots ? args.expert_index : nullptr,
                                slots ? args.position : nullptr,
                                args.B,
                                N,
                                args.K,
                                args.E,
                                args.C,
                                stream_of(ctx).fault()};
  return {assignments, slots, slots ? args.B * args.C : args.T};
}

}  // namespace st_moe::cuda
