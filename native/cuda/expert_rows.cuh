#pragma once
#include "cuda/grouped.h"
#include "cuda/operands.cuh"
#include "cuda/plan.cuh"

namespace st_moe::cuda {

// The rows that the experts compute: those of a plan, full or empty; or, without a plan, the tokens as they are. Empty
// rows of x are zero, but NaN in a weight spreads even to those: what adds up rows leaves them out or finds exact zeros
// there.
struct ExpertRows {
  Plan plan;
  bool planned;  // false: row t is token t
  RowGroups groups;

  int64_t count() const { return groups.R; }
};

template <class Args>
ExpertRows expert_rows_of(const Context& ctx, const Args& args) {
  const bool planned = args.assignment || args.R == 0;
  if (!planned && (args.E < 1 || args.K != 1 || args.R != args.T || args.R % args.E != 0))
    fail(ErrorCode::option,
         "without a plan there must be one choice and a row for each token, equally many per expert");
  for (int64_t e = 0; args.host_ends && e < args.E; ++e)
    if (args.host_ends[e] < (e > 0 ? args.host_ends[e - 1] : 0) || args.host_ends[e] > args.R)
      fail(ErrorCode::option, "ends must rise and be at most %lld, got %d for expert %lld",
           static_cast<long long>(args.R), args.host_ends[e], static_cast<long long>(e));
  ExpertRows rows{plan_of(ctx, args, args.assignment), planned,
                  args.ends ? RowGroups::uneven(args.E, args.R, args.ends, args.host_ends)
                            : RowGroups::equal(args.E, args.E > 0 ? args.R / args.E : 0)};
  rows.plan.R = rows.count();
  return rows;
}

// y [T, N] = Σ_k weight_k · (row of a · w + bias), see multiply_rows and combine_rows; `products` [rows, N], null for
// memory of its own. With uneven loads and bf16 operands the products are bf16, too: cuBLAS has grouped GEMMs of bf16
// with no other results.
template <class T, class O>
void combine_products(const Context& ctx, DType operands, DType dtype, const ExpertRows& rows, const Matrix& a,
                      const Matrix& w, bool transposed, T* products, const T* weight, const T* bias, T* y, int64_t N) {
  if constexpr (std::is_same_v<O, Bf16>)
    if (rows.groups.ends) {
      const int64_t stride = padded<O>(N);
      const Scratch<Stored<O>> rounded(ctx, rows.count() * stride);
      multiply_rows(ctx, operands, operands, rows.groups, a, w, transposed, rounded.get(), stride, N);
      return combine_rows<T, O>(ctx, rows.plan, rounded.get(), stride, weight, bias, y, N, rows.groups);
    }
  const Scratch<T> own(ctx, products ? 0 : rows.count() * N);
  if (!products) products = own.get();
  multiply_rows(ctx, operands, dtype, rows.groups, a, w, transposed, products, N, N);
  combine_rows<T>(ctx, rows.plan, products, N, weight, bias, y, N, rows.groups);
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
