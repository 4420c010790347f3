#include "core/ops/moe.h"
#include "cpu/plan.h"

namespace st_moe::cpu::ST_MOE_ISA {

void plan_sorted(const Context&, const PlanSortedArgs& args) {
  const int64_t K = args.K, count = args.T * K, E = args.E;
  check_assignment_count(args.T, K);
  Scratch<int64_t> next(E + 1);  // of each expert the number of rows, then the row that its next assignment gets
  for (int64_t e = 0; e <= E; ++e) next[e] = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (args.position[i] < 0) continue;
    check_expert(args.expert_index[i], E, i, K);
    ++next[args.expert_index[i] + 1];
  }
  for (int64_t e = 0; e < E; ++e) next[e + 1] += next[e];
  if (next[E] > args.R)
    fail(ErrorCode::option, "%lld assignments are dispatched, but there is room for %lld rows",
         static_cast<long long>(next[E]), static_cast<long long>(args.R));
  for (int64_t e = 0; e < E; ++e) args.ends[e] = static_cast<int32_t>(next[e + 1]);
  for (int64_t r = next[E]; r < args.R; ++r) args.assignment[r] = -1;
  for (int64_t i = 0; i < count; ++i) {
    args.row_of[i] = -1;
    if (args.position[i] < 0) continue;
    args.row_of[i] = static_cast<int32_t>(next[args.expert_index[i]]++);
    args.assignment[args.row_of[i]] = static_cast<int32_t>(i);
  }
}

}  // namespace st_moe::cpu::ST_MOE_ISA
