#pragma once
#include <cstring>

#include "cpu/kernel.h"

// Which rows the experts compute, and which slot of an expert's buffer holds which token. Both checks come before
// any kernel runs: the indices are the caller's and may be anything.
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

// The kept assignments sorted by (expert, token, choice). Without indices (one expert, every token) there is no
// list: row t is token t, and the pointers are null.
class Assignments {
 public:
  template <class Args>
  explicit Assignments(const Args& args)
      : lists_(args.expert_index || args.T == 0),
        offset_(args.E + 1),
        token_(lists_ ? args.rows : 0),
        assignment_(lists_ ? args.rows : 0),
        row_of_(lists_ ? args.T * args.K : 0) {
    check_assignment_count(args.T, args.K);
    if (lists_)
      sort(args.expert_index, args.position, args.T, args.K, args.E, args.rows);
    else
      fill_dense(args.T, args.K, args.E, args.rows);
  }

  bool dense() const { return !lists_; }
  int64_t rows() const { return rows_; }
  int64_t begin(int64_t expert) const { return offset_[expert]; }
  int64_t end(int64_t expert) const { return offset_[expert + 1]; }
  const int32_t* token() const { return lists_ ? token_.get() : nullptr; }            // [rows]
  const int32_t* assignment() const { return lists_ ? assignment_.get() : nullptr; }  // [rows], token · K + choice
  const int32_t* row_of() const { return lists_ ? row_of_.get() : nullptr; }          // [T · K], −1 where not kept

 private:
  void sort(const int32_t* expert, const int32_t* position, int64_t T, int64_t K, int64_t E, int64_t capacity) {
    memset(offset_.get(), 0, static_cast<size_t>(E + 1) * sizeof(int64_t));
    for (int64_t i = 0; i < T * K; ++i) {
      if (position[i] < 0) continue;
      check_expert(expert[i], E, i, K);
      ++offset_[expert[i] + 1];
      ++rows_;
    }
    if (rows_ > capacity)
      fail(ErrorCode::option, "%lld assignments are kept, but there is room for %lld rows",
           static_cast<long long>(rows_), static_cast<long long>(capacity));
    for (int64_t e = 0; e < E; ++e) offset_[e + 1] += offset_[e];
    Scratch<int64_t> next(E);
    for (int64_t e = 0; e < E; ++e) next[e] = offset_[e];
    for (int64_t t = 0, i = 0; t < T; ++t)
      for (int64_t k = 0; k < K; ++k, ++i) {
        row_of_[i] = -1;
        if (position[i] < 0) continue;
        const int64_t row = next[expert[i]]++;
        token_[row] = static_cast<int32_t>(t);
        assignment_[row] = static_cast<int32_t>(i);
        row_of_[i] = static_cast<int32_t>(row);
      }
  }

  void fill_dense(int64_t T, int64_t K, int64_t E, int64_t capacity) {
    if (E != 1 || K != 1 || capacity < T)
      fail(ErrorCode::option, "without indices there must be one expert, one choice and a row for each token");
    rows_ = T;
    offset_[0] = 0;
    offset_[1] = T;
  }

  bool lists_;
  int64_t rows_ = 0;
  Scratch<int64_t> offset_;  // [E + 1]
  Scratch<int32_t> token_, assignment_, row_of_;
};

// Row of [E, B, C] that an assignment occupies, or −1. i = token · K + choice.
template <class Args>
static inline int64_t slot_of(const Args& args, int64_t i) {
  const int64_t position = args.position[i];
  if (position < 0) return -1;
  return (args.expert_index[i] * args.B + i / args.K / args.N) * args.C + position;
}

template <class Args>
static inline void check_slots(const Args& args) {
  check_assignment_count(args.B * args.N, args.K);
  for (int64_t i = 0; i < args.B * args.N * args.K; ++i) {
    if (args.position[i] < 0) continue;
    check_expert(args.expert_index[i], args.E, i, args.K);
    if (args.position[i] >= args.C)
      fail(ErrorCode::option, "position must be below the capacity %lld, got %d for choice %lld of token %lld",
           static_cast<long long>(args.C), args.position[i], static_cast<long long>(i % args.K),
           static_cast<long long>(i / args.K));
  }
}

// holder [E · B · C] = the assignment (token · K + choice) in each slot, or −1. Where a caller puts two assignments
// into one slot the last one has it.
template <class Args>
static inline void fill_holders(const Args& args, int32_t* holder) {
  for (int64_t slot = 0; slot < args.E * args.B * args.C; ++slot) holder[slot] = -1;
  for (int64_t i = 0; i < args.B * args.N * args.K; ++i) {
    const int64_t slot = slot_of(args, i);
    if (slot >= 0) holder[slot] = static_cast<int32_t>(i);
  }
}

// Rows a task should take so that it moves some 64 KB.
static inline int64_t rows_per_task(int64_t row_bytes) {
  return max_of<int64_t>(1, (64 << 10) / max_of<int64_t>(1, row_bytes));
}

// y = Σ_k weight_k · row_k in choice order over the rows that are not null; zeros without any. weight null: all 1.
template <class T, class Row>
static inline void weighted_sum(T* __restrict y, int64_t D, int64_t K, const T* weight, Row&& row) {
  bool empty = true;
  for (int64_t k = 0; k < K; ++k) {
    const T* __restrict x = row(k);
    if (!x) continue;
    const T w = weight ? weight[k] : T(1);
    if (empty)
      for (int64_t j = 0; j < D; ++j) y[j] = w * x[j];
    else
      for (int64_t j = 0; j < D; ++j) y[j] += w * x[j];
    empty = false;
  }
  if (empty)
    for (int64_t j = 0; j < D; ++j) y[j] = 0;
}

}  // namespace st_moe::cpu::ST_MOE_ISA
