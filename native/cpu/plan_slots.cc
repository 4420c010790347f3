#include "core/ops/moe.h"
#include "cpu/plan.h"

namespace st_moe::cpu::ST_MOE_ISA {

void plan_slots(const Context&, const PlanSlotsArgs& args) {
  const int64_t K = args.K, count = args.B * args.N * K;
  check_assignment_count(args.B * args.N, K);
  for (int64_t slot = 0; slot < args.E * args.B * args.C; ++slot) args.assignment[slot] = -1;
  for (int64_t i = 0; i < count; ++i) {
    args.row_of[i] = -1;
    const int32_t expert = args.expert_index[i], position = args.position[i];
    if (position < 0) continue;
    check_expert(expert, args.E, i, K);
    if (position >= args.C)
      fail(ErrorCode::option, "position must be below the capacity %lld, got %d for choice %lld of token %lld",
           static_cast<long long>(args.C), position, static_cast<long long>(i % K), static_cast<long long>(i / K));
    args.row_of[i] = static_cast<int32_t>((expert * args.B + i / K / args.N) * args.C + position);
    if (const int32_t other = args.assignment[args.row_of[i]]; other >= 0)
      fail(ErrorCode::option, "tokens %lld and %lld have the same slot: position %d of expert %d",
           static_cast<long long>(other / K), static_cast<long long>(i / K), position, expert);
    args.assignment[args.row_of[i]] = static_cast<int32_t>(i);
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA
