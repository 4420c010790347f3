#include "core/ops/moe.h"
#include "cuda/plan.cuh"

namespace st_moe::cuda {

constexpr int kPlanExperts = 8;  // of a block, which reads all assignments of its sequence

struct Slots {
  const int32_t *expert_index, *position;  // [B, N, K]
  int32_t *assignment, *row_of;            // [E, B, C], [B, N, K]
  int64_t B, N, K, E, C;
  Stream::ErrorFlag* error_flag;

  // Of an assignment of sequence b, or −1.
  __device__ int64_t slot(int64_t b, int64_t assignment) const {
    const int32_t at = position[assignment];
    if (at < 0) return -1;
    const int32_t expert = expert_index[assignment];
    const bool known = expert >= 0 && expert < E;
    if (known && at < C) return (expert * B + b) * C + at;
    report_error(error_flag, kExpertError, known ? at : expert);
    return -1;
  }
};

// A block has the slots of kPlanExperts experts for one sequence: it clears them and then looks for their assignments,
// so that no kernel has to run before.
__global__ void __launch_bounds__(kBlock) slots_kernel(Slots s, int64_t groups) {
  for (int64_t work = blockIdx.x; work < s.B * groups; work += gridDim.x) {
    const int64_t b = work / groups, first = work % groups * kPlanExperts, last = min_of(s.E, first + kPlanExperts);
    for (int64_t i = threadIdx.x; i < (last - first) * s.C; i += blockDim.x) {
      const MatrixIndex at = matrix_index(i, s.C);
      s.assignment[((first + at.row) * s.B + b) * s.C + at.column] = -1;
    }
    __syncthreads();
    for (int64_t i = b * s.N * s.K + threadIdx.x; i < (b + 1) * s.N * s.K; i += blockDim.x) {
      const int64_t slot = s.slot(b, i);
      if (slot < 0 && first == 0) s.row_of[i] = -1;
      if (slot < first * s.B * s.C || slot >= last * s.B * s.C) continue;
      s.row_of[i] = static_cast<int32_t>(slot);
      const int32_t other = atomicMax(s.assignment + slot, static_cast<int32_t>(i));
      if (other >= 0) report_error(s.error_flag, kSlotError, s.position[i]);
    }
  }
}

void plan_slots(const Context& ctx, const PlanSlotsArgs& args) {
  check_assignment_count(args.B * args.N, args.K);
  const Slots slots{
      args.expert_index,          args.position, args.assignment, args.row_of, args.B, args.N, args.K, args.E, args.C,
      stream_of(ctx).error_flag()};
  const int64_t groups = args.E > 0 ? ceil_div(args.E, kPlanExperts) : 1;
  if (args.B > 0) launch(ctx, slots_kernel, grid_for(args.B * groups, 1), kBlock, 0, slots, groups);
}

}  // namespace st_moe::cuda
