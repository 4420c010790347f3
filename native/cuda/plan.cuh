#pragma once
#include "cuda/operands.cuh"
#include "cuda/row_lanes.cuh"
#include "cuda/row_groups.cuh"
#include "cuda/rows.cuh"
#include "cuda/vector.cuh"

// Plans: see core/moe_ops.inc. The indices are the caller's and may be anything: what is out of range is reported and
// left out.
namespace st_moe::cuda {

static inline void check_assignment_count(int64_t T, int64_t K) {
  if (T > INT32_MAX / (K < 1 ? 1 : K))
    fail(ErrorCode::shape, "too many assignments: %lld tokens with %lld choices each", static_cast<long long>(T),
         static_cast<long long>(K));
}

struct Plan {
  const int32_t *assignment, *row_of;  // [R], [T, K]; both null: row t is token t
  int64_t T, K, R;
  int32_t assignments;  // T · K
  Divisor by_K;
  Stream::ErrorFlag* error_flag;

  // Row of an assignment, or −1.
  __device__ int64_t row(int64_t token, int64_t k) const {
    if (!row_of) return token;
    const int32_t row = row_of[token * K + k];
    if (row < R) return row < 0 ? -1 : row;
    report_error(error_flag, kExpertError, row);
    return -1;
  }
  // token · K + k of a row, or −1.
  __device__ int64_t assignment_of(int64_t row) const {
    if (!assignment) return row;
    const int32_t i = assignment[row];
    if (i < assignments) return i < 0 ? -1 : i;
    report_error(error_flag, kExpertError, i);
    return -1;
  }
  __device__ int64_t token_of(int64_t assignment) const { return by_K.quotient(assignment); }
};

template <class Args>
Plan plan_of(const Context& ctx, const Args& args, const int32_t* assignment = nullptr) {
  check_assignment_count(args.T, args.K);
  if (args.R > INT32_MAX) fail(ErrorCode::shape, "too many rows: %lld", static_cast<long long>(args.R));
  const auto assignments = static_cast<int32_t>(args.T * args.K);
  return {assignment, args.row_of, args.T, args.K, args.R, assignments, Divisor(args.K), stream_of(ctx).error_flag()};
}

// Row of out [R, D] = weight · x [T, D] of its token; zeros in empty rows.
template <class T, int N>
struct GatherRows {
  Plan plan;
  const T *x, *weight;  // weight [T, K]; null: all 1
  T* out;
  int64_t D;

  template <class Lanes>
  __device__ void operator()(int64_t row, Lanes lanes) const {
    const int64_t assignment = plan.assignment_of(row);
    const T* from = x + (assignment < 0 ? 0 : plan.token_of(assignment)) * D;
    const T w = assignment >= 0 && weight ? weight[assignment] : T(1);
    write_row<N>(out + row * D, D, lanes, [&](int64_t j) {
      Vector<T, N> values{};
      if (assignment >= 0) values = load<N>(from + j);
      for (int c = 0; c < N; ++c) values[c] *= w;
      return values;
    });
  }
};

template <class T>
void gather_rows(const Context& ctx, const Plan& plan, const T* x, const T* weight, T* out, int64_t D) {
  dispatch_width<vector_width<T>>(D, aligned(x, out),
                                  [&](auto n) { for_rows(ctx, plan.R, D, GatherRows<T, n>{plan, x, weight, out, D}); });
}

// Row of y [T, D] = Σ_k weight_k · (rows [R, D] + bias) in order of k over the assignments that have a row; zeros
// without any. y may be `rows` if row t is token t.
template <class T, class O, int N>
struct CombineRows {
  Plan plan;
  const Stored<O>* rows;
  const T *weight, *bias;  // weight [T, K]; null: all 1. bias [G, D]; null: 0
  T* y;
  int64_t D, stride;  // stride: from row to row of `rows`
  RowGroups groups;

  template <class Lanes>
  __device__ void operator()(int64_t token, Lanes lanes) const {
    constexpr int kAtOnce = N == 4 ? 4 : 2;
    for_columns<N, kAtOnce>(D, lanes, [&](auto each) {
      Vector<T, N> totals[kAtOnce]{};
      bool empty = true;
      for (int64_t k = 0; k < plan.K; ++k) {
        const int64_t row = plan.row(token, k);
        if (row < 0) continue;
        const T w = weight ? weight[token * plan.K + k] : T(1), *add = bias ? bias + groups.group_of(row) * D : nullptr;
        Vector<Stored<O>, N> stored[kAtOnce]{};
        each([&](int i, int64_t j) { stored[i] = load<N>(rows + row * stride + j); });
        each([&](int i, int64_t j) {
          const Vector<T, N> bias_of_row = add ? load<N>(add + j) : Vector<T, N>{};
          for (int c = 0; c < N; ++c) {
            const T value = add ? O::load(stored[i][c]) + bias_of_row[c] : O::load(stored[i][c]);
            totals[i][c] = empty ? value * w : totals[i][c] + value * w;
          }
        });
        empty = false;
      }
      each([&](int i, int64_t j) { store(y + token * D + j, totals[i]); });
    });
  }
};

template <class T, class O = Unrounded<T>>
void combine_rows(const Context& ctx, const Plan& plan, const Stored<O>* rows, int64_t stride, const T* weight,
                  const T* bias, T* y, int64_t D, const RowGroups& groups = {}) {
  dispatch_width<vector_width<Stored<O>>>(D | stride, aligned(rows, bias, y), [&](auto n) {
    for_rows(ctx, plan.T, D, CombineRows<T, O, n>{plan, rows, weight, bias, y, D, stride, groups});
  });
}

// out [T, K] = <x [T, D] of the token, rows [R, D] of the assignment>, 0 without a row. By warps.
template <class T, int N>
struct RowDots {
  Plan plan;
  const T *x, *rows;
  T* out;
  int64_t D;

  __device__ void operator()(int64_t i, int lane) const {
    const int64_t token = plan.token_of(i), row = plan.row(token, i - token * plan.K);
    T total = 0;
    for (int64_t j = lane * N; row >= 0 && j < D; j += kWarp * N) {
      const Vector<T, N> a = load<N>(x + token * D + j), b = load<N>(rows + row * D + j);
      for (int c = 0; c < N; ++c) total += a[c] * b[c];
    }
    total = warp_reduce(total, Sum{});
    if (lane == 0) out[i] = total;
  }
};

template <class T>
void row_dots(const Context& ctx, const Plan& plan, const T* x, const T* rows, T* out, int64_t D) {
  dispatch_width<vector_width<T>>(
      D, aligned(x, rows), [&](auto n) { by_warp(ctx, plan.assignments, RowDots<T, n>{plan, x, rows, out, D}); });
}

}  // namespace st_moe::cuda
