#pragma once
#include "cuda/rows.cuh"

// Plans: see core/ops.inc. The indices are the caller's and may be anything: what is out of range is reported and left
// out.
namespace st_moe::cuda {

static inline void check_assignment_count(int64_t T, int64_t K) {
  if (T > INT32_MAX / (K < 1 ? 1 : K))
    fail(ErrorCode::shape, "too many assignments: %lld tokens with %lld choices each", static_cast<long long>(T),
         static_cast<long long>(K));
}

struct Plan {
  const int32_t *assignment, *row_of;  // [R], [T, K]; both null: row t is token t
  int64_t T, K, R;
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
    if (i < T * K) return i < 0 ? -1 : i;
    report_error(error_flag, kExpertError, i);
    return -1;
  }
  __device__ int64_t token_of(int64_t assignment) const { return matrix_index(assignment, K).row; }
};

template <class Args>
Plan plan_of(const Context& ctx, const Args& args, const int32_t* assignment = nullptr) {
  check_assignment_count(args.T, args.K);
  return {assignment, args.row_of, args.T, args.K, args.R, stream_of(ctx).error_flag()};
}

// Element of out [R, D] = weight · x [T, D] of the row's token; zeros in empty rows.
template <class T>
struct GatherRows {
  Plan plan;
  const T *x, *weight;  // weight [T, K]; null: all 1
  T* out;
  int64_t D;

  __device__ void operator()(int64_t i) const {
    const MatrixIndex at = matrix_index(i, D);
    const int64_t assignment = plan.assignment_of(at.row);
    T value = 0;
    if (assignment >= 0) value = x[plan.token_of(assignment) * D + at.column];
    if (assignment >= 0 && weight) value *= weight[assignment];
    out[i] = value;
  }
};

// Element of y [T, D] = Σ_k weight_k · (rows [R, D] + bias) in order of k over the assignments that have a row; zeros
// without any. y may be `rows` if row t is token t.
template <class T>
struct CombineRows {
  Plan plan;
  const T *rows, *weight, *bias;  // weight [T, K]; null: all 1. bias [R / each, D]; null: 0
  T* y;
  int64_t D, each;

  __device__ void operator()(int64_t i) const {
    const MatrixIndex at = matrix_index(i, D);
    T total = 0;
    bool empty = true;
    for (int64_t k = 0; k < plan.K; ++k) {
      const int64_t row = plan.row(at.row, k);
      if (row < 0) continue;
      T value = rows[row * D + at.column];
      if (bias) value += bias[matrix_index(row, each).row * D + at.column];
      if (weight) value *= weight[at.row * plan.K + k];
      total = empty ? value : total + value;
      empty = false;
    }
    y[i] = total;
  }
};

// out [T, K] = <x [T, D] of the token, rows [R, D] of the assignment>, 0 without a row. By warps.
template <class T>
struct RowDots {
  Plan plan;
  const T *x, *rows;
  T* out;
  int64_t D;

  __device__ void operator()(int64_t i, int lane) const {
    const MatrixIndex at = matrix_index(i, plan.K);
    const int64_t row = plan.row(at.row, at.column);
    T total = 0;
    for (int64_t j = lane; row >= 0 && j < D; j += kWarp) total += x[at.row * D + j] * rows[row * D + j];
    total = warp_reduce(total, Sum{});
    if (lane == 0) out[i] = total;
  }
};

}  // namespace st_moe::cuda
