#pragma once
#include <algorithm>

#include "core/activation.h"
#include "core/process_group.h"
#include "core/router_statistics.h"
#include "core/tensor.h"

// Requirements on arguments beyond shapes and ranges, and derived values; applied before outputs are allocated. A
// requested output is not null.
namespace st_moe {

template <class Args>
void apply_rules(Args&, const Backend&) {}

inline void expect_rate(const char* name, double p) {
  if (!(p >= 0 && p < 1)) fail(ErrorCode::option, "%s must be in [0, 1), got %g", name, p);
}
inline void apply_rules(DropoutArgs& a, const Backend&) {
  expect_rate("p", a.p);
}

inline void apply_rules(ExtremumArgs& a, const Backend&) {
  if (a.A == 0 && a.T > 0 && a.I > 0) fail(ErrorCode::shape, "the axis must not be empty");
  if (a.A > INT32_MAX) fail(ErrorCode::shape, "the axis must have at most 2^31 - 1 entries, got %lld", (long long)a.A);
}

inline void apply_rules(RandpermArgs& a, const Backend&) {
  if (a.size > INT32_MAX) fail(ErrorCode::shape, "at most 2^31 - 1 numbers are permuted, got %lld", (long long)a.size);
}

inline void apply_rules(TopkArgs& a, const Backend&) {
  if (a.K > a.E) fail(ErrorCode::option, "K must be at most %lld, got %lld", (long long)a.E, (long long)a.K);
}

template <class Args>
void expect_slots(const Args& a) {
  if (shape_size({a.E, a.B, a.C}) > INT32_MAX)
    fail(ErrorCode::shape, "too many slots: %lld experts, %lld sequences, capacity %lld", (long long)a.E,
         (long long)a.B, (long long)a.C);
}

inline void apply_rules(RouteArgs& a, const Backend&) {
  if (a.K > a.E) fail(ErrorCode::option, "K must be at most %lld, got %lld", (long long)a.E, (long long)a.K);
  if (a.second_density && a.K < 2) fail(ErrorCode::option, "secondDensity needs K of at least 2");
  if (!a.assignment != !a.row_of) fail(ErrorCode::option, "assignment and rowOf come together");
  if (a.assignment) expect_slots(a);
}

template <class Args>
void expect_one_dx(const Args& a) {
  if (a.dx && a.dx_sum) fail(ErrorCode::option, "dx is an output or added to dxSum, not both");
}
inline void apply_rules(LinearBackwardArgs& a, const Backend&) {
  expect_one_dx(a);
}

template <class Args>
void expect_router_dx(const Args& a) {
  expect_one_dx(a);
  if (a.dx_sum && a.mask) fail(ErrorCode::option, "dxSum is for routings without a mask");
}
inline void apply_rules(RouteBackwardArgs& a, const Backend&) {
  expect_router_dx(a);
}
inline void apply_rules(ExpertChoiceBackwardArgs& a, const Backend&) {
  expect_router_dx(a);
}

inline void apply_rules(AdafactorArgs& a, const Backend&) {
  if (!a.row != !a.col) fail(ErrorCode::option, "row and col come together");
  if (!a.row && !a.v) fail(ErrorCode::option, "without row and col there must be v");
}

template <class Args>
void expect_grouped(const Args& a) {
  if (a.heads % a.kv_heads != 0)
    fail(ErrorCode::option, "heads must be a multiple of kvHeads, got %lld and %lld", (long long)a.heads,
         (long long)a.kv_heads);
}
inline void apply_rules(CachedAttentionArgs& a, const Backend&) {
  expect_grouped(a);
  if (a.M < a.N) fail(ErrorCode::shape, "a slot of %lld rows has no room for %lld", (long long)a.M, (long long)a.N);
  if (!a.slot && a.S < a.B)
    fail(ErrorCode::shape, "%lld slots are too few for %lld sequences", (long long)a.S, (long long)a.B);
}
inline void apply_rules(AttentionArgs& a, const Backend&) {
  expect_grouped(a);
}
inline void apply_rules(AttentionBackwardArgs& a, const Backend&) {
  expect_grouped(a);
}

inline void apply_rules(RotaryArgs& a, const Backend&) {
  if (a.d % 2 != 0) fail(ErrorCode::shape, "the width of a head must be even, got %lld", (long long)a.d);
}

inline void apply_rules(RouterStatisticsArgs& a, const Backend&) {
  if (a.K < 1 || a.K > a.E)
    fail(ErrorCode::option, "K must be from 1 to %lld, got %lld", (long long)a.E, (long long)a.K);
  a.S = router_statistics_size(a.E);
}

inline void apply_rules(PlanSlotsArgs& a, const Backend&) {
  expect_slots(a);
}

template <class Args>
void expect_experts(Args& a, const Backend& backend) {
  if (!a.assignment || !a.row_of || !a.weight) {
    if (a.assignment || a.ends || a.row_of || a.weight)
      fail(ErrorCode::option, "assignment, rowOf and weight come together");
    a.K = 1;
    a.R = a.T;
  }
  if (!a.ends && (a.E == 0 ? a.R != 0 : a.R % a.E != 0))
    fail(ErrorCode::shape, "%lld rows are not a multiple of %lld experts", (long long)a.R, (long long)a.E);
  expect_rate("dropout", a.dropout);
  if (a.mult_bias && !is_gated(a.activation)) fail(ErrorCode::option, "multBias belongs to the gated activations");
  a.P = w1_rows(a.activation, a.H);
  a.saved = saved_columns(backend, a.activation, a.H, a.compute);
}
inline void apply_rules(ExpertFfnArgs& a, const Backend& backend) {
  expect_experts(a, backend);
}
inline void apply_rules(ExpertFfnBackwardArgs& a, const Backend& backend) {
  expect_experts(a, backend);
  if (a.dweight && !a.weight) fail(ErrorCode::option, "without weight there is no dweight");
  const struct {
    const char* name;
    const void *parameter, *gradient;
  } pairs[] = {{"b1", a.b1, a.db1}, {"multBias", a.mult_bias, a.dmult_bias}, {"w2", a.w2, a.dw2}, {"b2", a.b2, a.db2}};
  for (const auto& [name, parameter, gradient] : pairs) {
    if (gradient && !parameter) fail(ErrorCode::option, "without %s there is no gradient of it", name);
    if (parameter && !gradient != !a.dw1) fail(ErrorCode::option, "the gradients of the parameters come together");
  }
}

// The sum of a list of rows by rank, which must be `wanted` if it is not negative.
inline int64_t sum_of_rows(const char* name, const int64_t* counts, int ranks, int64_t wanted) {
  int64_t sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += counts[rank];  // each is at most 2^46
  if (sum > kMaxElements) fail(ErrorCode::shape, "%s has too many rows", name);
  if (wanted >= 0 && sum != wanted)
    fail(ErrorCode::shape, "%s must add up to the %lld rows of x, got %lld", name, (long long)wanted, (long long)sum);
  return sum;
}
inline void apply_rules(AllGatherArgs& a, const Backend&) {
  a.M = sum_of_rows("rows", a.rows, a.group->size(), -1);
  const int64_t own = a.rows[a.group->rank()];
  if (own != a.S)
    fail(ErrorCode::shape, "rows must have the %lld rows of x at this rank, got %lld", (long long)a.S, (long long)own);
}
inline void apply_rules(ReduceScatterArgs& a, const Backend&) {
  sum_of_rows("rows", a.rows, a.group->size(), a.S);
  a.M = a.rows[a.group->rank()];
}
inline void apply_rules(AllToAllArgs& a, const Backend&) {
  sum_of_rows("sent", a.sent, a.group->size(), a.S);
  a.M = sum_of_rows("received", a.received, a.group->size(), -1);
  const int rank = a.group->rank();
  if (a.received[rank] != a.sent[rank])  // a group copies them
    fail(ErrorCode::shape, "received must have the %lld rows that this rank sends to itself, got %lld",
         (long long)a.sent[rank], (long long)a.received[rank]);
}
inline void expect_rank_of(const char* name, int rank, const ProcessGroup& group) {
  if (rank < 0 || rank >= group.size())
    fail(ErrorCode::option, "%s must be a rank from 0 to %d, got %d", name, group.size() - 1, rank);
}
inline void apply_rules(BroadcastArgs& a, const Backend&) {
  expect_rank_of("root", a.root, *a.group);
}
inline void apply_rules(BroadcastBackwardArgs& a, const Backend&) {
  expect_rank_of("root", a.root, *a.group);
}
inline void expect_other_rank(const char* name, int rank, const ProcessGroup& group) {
  expect_rank_of(name, rank, group);
  if (rank == group.rank()) fail(ErrorCode::option, "%s must be another rank, got %d", name, rank);
}
inline void apply_rules(SendArgs& a, const Backend&) {
  expect_other_rank("to", a.to, *a.group);
}
inline void apply_rules(RecvArgs& a, const Backend&) {
  expect_other_rank("from", a.from, *a.group);
}

}  // namespace st_moe
