#include "core/ops/moe.h"
#include "cuda/plan.cuh"
#include "cuda/search.cuh"
#include "cuda/sort.cuh"

namespace st_moe::cuda {

struct Dispatched {
  const int32_t *expert_index, *position;  // [T, K]
  int64_t E;
  Stream::ErrorFlag* error_flag;

  // What an assignment is sorted by: its expert, or E if it is not dispatched.
  __device__ int32_t key(int64_t i) const {
    const int32_t expert = expert_index[i];
    const bool known = expert >= 0 && expert < E;
    if (position[i] >= 0 && known) return expert;
    if (position[i] >= 0) report_error(error_flag, kExpertError, expert);
    return static_cast<int32_t>(E);
  }
};

struct SortKeys {
  Dispatched dispatched;
  int32_t* keys;
  int64_t* order;

  __device__ void operator()(int64_t i) const {
    keys[i] = dispatched.key(i);
    order[i] = i;
  }
};

// Item i is row i, assignment i of the sorted ones, and expert i.
struct SortedRows {
  const int32_t* keys;   // [count] sorted
  const int64_t* order;  // [count]
  int32_t *assignment, *ends, *row_of;
  int64_t count, E, R;
  Stream::ErrorFlag* error_flag;

  __device__ void operator()(int64_t i) const {
    const bool dispatched = i < count && keys[i] < E, has_row = dispatched && i < R;
    if (dispatched && !has_row) report_error(error_flag, kExpertError, keys[i]);
    if (i < count) row_of[order[i]] = has_row ? static_cast<int32_t>(i) : -1;
    if (i < R) assignment[i] = has_row ? static_cast<int32_t>(order[i]) : -1;
    if (i < E) ends[i] = static_cast<int32_t>(min_of(R, lower_bound(keys, count, i + 1)));
  }
};

// Up to kBlock assignments, such as those of a decoding step, by one block: a thread counts those before its own.
__global__ void __launch_bounds__(kBlock) sort_few_kernel(Dispatched dispatched, SortedRows rows, int64_t items) {
  __shared__ int32_t keys[kBlock], sorted[kBlock];
  __shared__ int64_t order[kBlock];
  const int i = threadIdx.x, count = static_cast<int>(rows.count);
  if (i < count) keys[i] = dispatched.key(i);
  __syncthreads();
  if (i < count) {
    int place = 0;
    for (int j = 0; j < count; ++j) place += keys[j] < keys[i] || (keys[j] == keys[i] && j < i);
    sorted[place] = keys[i];
    order[place] = i;
  }
  __syncthreads();
  rows.keys = sorted, rows.order = order;
  for (int64_t item = i; item < items; item += kBlock) rows(item);
}

void plan_sorted(const Context& ctx, const PlanSortedArgs& args) {
  check_assignment_count(args.T, args.K);
  if (args.E >= INT32_MAX || args.R > INT32_MAX) fail(ErrorCode::shape, "too many experts or rows");
  const int64_t count = args.T * args.K, items = max_of(count, max_of(args.R, args.E));
  Stream::ErrorFlag* const error_flag = stream_of(ctx).error_flag();
  const Dispatched dispatched{args.expert_index, args.position, args.E, error_flag};
  SortedRows rows{nullptr, nullptr, args.assignment, args.ends, args.row_of, count, args.E, args.R, error_flag};
  if (count <= kBlock) return launch(ctx, sort_few_kernel, 1, kBlock, 0, dispatched, rows, items);
  const Scratch<int32_t> keys(ctx, 2 * count);
  const Scratch<int64_t> order(ctx, 2 * count);
  elementwise(ctx, count, SortKeys{dispatched, keys.get(), order.get()});
  const int64_t sorted = sort_by_key(ctx, count, args.E + 1, keys.get(), order.get()) * count;
  rows.keys = keys.get() + sorted, rows.order = order.get() + sorted;
  elementwise(ctx, items, rows);
}

}  // namespace st_moe::cuda
