#include "cuda/ops.h"

#include "cuda/kernel.cuh"

namespace st_moe::cuda {

void plan_sorted(const Context&, const PlanSortedArgs&) {
  fail(ErrorCode::unsupported, "plan_sorted is for the CPU: a GPU has a row for each slot");
}

}  // namespace st_moe::cuda
