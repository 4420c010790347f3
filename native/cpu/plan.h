#pragma once
#include <cstring>

#include "cpu/element_types.h"
#include "cpu/kernel.h"

// Plans: see core/moe_ops.inc. Checks come before any kernel, because indices are the caller's and may be anything.
namespace st_moe::cpu::ST_MOE_ISA {

static inline void check_assignment_count(int64_t T, int64_t K) {
  if (T > INT32_MAX / max_of<int64_t>(K, 1))
    fail(ErrorCode::shape, "too many assignments: %lld tokens with %lld choices each", static_cast<long long>(T),
         static_cast<long long>(K));
}

static inline void check_expert(int32_t expert, int64_t E, int64_t assignment, int64_t K) {
  if (expert < 0 || expert >= E)
    fail(ErrorCode::option, "expert_index must be in [0, %lld), got %d for choice %lld of token %lld",
         static_cast<long long>(E), expert, static_cast<long long>(assignment % K),
         static_cast<long long>(assignment / K));
}

// Of dispatch and combine. `assignment` may be null.
static inline void check_plan(const int32_t* assignment, int64_t R, const int32_t* row_of, int64_t T, int64_t K) {
  check_assignment_count(T, K);
  for (int64_t r = 0; assignment && r < R; ++r)
    if (assignment[r] >= T * K)
      fail(ErrorCode::option, "assignment must be below %lld, got %d for row %lld", static_cast<long long>(T * K),
           assignment[r], static_cast<long long>(r));
  for (int64_t i = 0; i < T * K; ++i)
    if (row_of[i] >= R)
      fail(ErrorCode::option, "row_of must be below %lld, got %d for assignment %lld", static_cast<long long>(R),
           row_of[i], static_cast<long long>(i));
}

// The rows of a plan that are not empty, in its order. Without a plan (equal parts of the tokens) there is no list: row
// t is token t, and the pointers are null.
class Assignments {
 public:
  template <class Args>
  explicit Assignments(const Args& args)
      : lists_(args.assignment || args.R == 0),
        offset_(args.E + 1),
        token_(lists_ ? args.R : 0),
        assignment_(lists_ ? args.R : 0),
        row_of_(lists_ ? args.T * args.K : 0) {
    if (lists_)
      read(args.assignment, args.ends, args.row_of, args.T, args.K, args.E, args.R);
    else
      fill_dense(args.T, args.K, args.E, args.R);
  }

  bool dense() const { return !lists_; }
  int64_t rows() const { return rows_; }
  int64_t begin(int64_t expert) const { return offset_[expert]; }
  int64_t end(int64_t expert) const { return offset_[expert + 1]; }
  const int32_t* token() const { return lists_ ? token_.get() : nullptr; }            // [rows]
  const int32_t* assignment() const { return lists_ ? assignment_.get() : nullptr; }  // [rows], token · K + k
  const int32_t* row_of() const { return lists_ ? row_of_.get() : nullptr; }          // [T · K], −1: dropped

 private:
  void read(const int32_t* assignment, const int32_t* ends, const int32_t* row_of, int64_t T, int64_t K, int64_t E,
            int64_t R) {
    check_plan(assignment, R, row_of, T, K);
    Scratch<int32_t> moved(R);  // where a row goes when empty ones are left out
    for (int64_t r = 0; r < R; ++r) moved[r] = -1;
    offset_[0] = 0;
    for (int64_t e = 0, r = 0; e < E; ++e) {
      const int64_t end = ends ? ends[e] : (e + 1) * (R / E);
      if (end < r || end > R)
        fail(ErrorCode::option, "ends must rise and be at most %lld, got %lld for expert %lld",
             static_cast<long long>(R), static_cast<long long>(end), static_cast<long long>(e));
      for (; r < end; ++r) {
        if (assignment[r] < 0) continue;
        assignment_[rows_] = assignment[r];
        token_[rows_] = static_cast<int32_t>(assignment[r] / K);
        moved[r] = static_cast<int32_t>(rows_++);
      }
      offset_[e + 1] = rows_;
    }
    for (int64_t i = 0; i < T * K; ++i) row_of_[i] = row_of[i] < 0 ? -1 : moved[row_of[i]];
  }

  void fill_dense(int64_t T, int64_t K, int64_t E, int64_t R) {
    if (E < 1 || K != 1 || R != T || T % E != 0)
      fail(ErrorCode::option,
           "without a plan there must be one choice and a row for each token, equally many per expert");
    rows_ = T;
    for (int64_t e = 0; e <= E; ++e) offset_[e] = e * (T / E);
  }

  bool lists_;
  int64_t rows_ = 0;
  Scratch<int64_t> offset_;  // [E + 1]
  Scratch<int32_t> token_, assignment_, row_of_;
};

// Rows per task, so that it moves some 64 KB.
static inline int64_t rows_per_task(int64_t row_bytes) {
  return max_of<int64_t>(1, (64 << 10) / max_of<int64_t>(1, row_bytes));
}

// y = Σ_k weight_k · row_k in order of k over the rows that are not null; zeros without any. weight null: all 1.
template <class T, class Row>
static inline void weighted_sum(T* __restrict y, int64_t D, int64_t K, const T* weight, Row&& row) {
  bool empty = true;
  for (int64_t k = 0; k < K; ++k) {
    const auto* __restrict x = row(k);
    if (!x) continue;
    const T w = weight ? weight[k] : T(1);
    if (empty)
      for (int64_t j = 0; j < D; ++j) y[j] = w * number(x[j]);
    else
      for (int64_t j = 0; j < D; ++j) y[j] += w * number(x[j]);
    empty = false;
  }
  if (empty)
    for (int64_t j = 0; j < D; ++j) y[j] = 0;
}

}  // namespace st_moe::cpu::ST_MOE_ISA
