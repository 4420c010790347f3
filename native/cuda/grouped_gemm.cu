#include <vector>

#include "core/ops/moe.h"
#include "core/groups.h"
#include "cuda/grouped.h"
#include "cuda/operands.cuh"

namespace st_moe::cuda {

// One block. Wrong sizes are reported; ends stay within [0, R] whatever they are.
__global__ void __launch_bounds__(kBlock)
    group_ends_kernel(const int32_t* sizes, int64_t G, int64_t R, int32_t* ends, Stream::ErrorFlag* error_flag) {
  // Each thread has a run of groups.
  const int64_t each = ceil_div(G, kBlock), first = min_of(G, threadIdx.x * each), last = min_of(G, first + each);
  int64_t rows = 0;
  for (int64_t g = first; g < last; ++g) {
    if (sizes[g] < 0) report_error(error_flag, kGroupError, sizes[g]);
    rows += max_of(int64_t{0}, int64_t{sizes[g]});
  }
  int64_t end = block_exclusive_scan(rows);
  if (threadIdx.x == kBlock - 1 && end + rows != R)
    report_error(error_flag, kGroupError, static_cast<int32_t>(min_of(end + rows, INT32_MAX)));
  for (int64_t g = first; g < last; ++g) {
    end += max_of(int64_t{0}, int64_t{sizes[g]});
    ends[g] = static_cast<int32_t>(min_of(R, end));
  }
}

// The groups of a call, for as long as it takes.
class GivenGroups {
 public:
  template <class Args>
  GivenGroups(const Context& ctx, const Args& args) : device_(ctx, args.host_sizes ? 0 : args.G) {
    if (args.R > INT32_MAX) fail(ErrorCode::shape, "too many rows: %lld", static_cast<long long>(args.R));
    int32_t end = 0;
    for (int64_t g = 0; args.host_sizes && g < args.G; ++g) host_.push_back(end += args.host_sizes[g]);
    if (device_.get())
      launch(ctx, group_ends_kernel, 1, kBlock, 0, args.group_sizes, args.G, args.R, device_.get(),
             stream_of(ctx).error_flag());
    groups_ = RowGroups::uneven(args.G, args.R, device_.get(), host_.empty() ? nullptr : host_.data());
  }
  const RowGroups& get() const { return groups_; }

 private:
  Scratch<int32_t> device_;
  std::vector<int32_t> host_;
  RowGroups groups_;
};

template <class T, class O>
static void forward(const Context& ctx, const GroupedGemmArgs& args) {
  const OperandRows<T, O> x(ctx, args.x, args.R, args.I);
  OperandWeight<T, O> w(ctx, args.w, args.w_stored, args.compute, args.G, args.O, args.I, args.w_packed);
  fill_operands(ctx, x.fill(), w.fill());
  w.filled();
  const GivenGroups groups(ctx, args);
  multiply_rows(ctx, args.compute, args.dtype, groups.get(), x.get(), w.get(), true, args.y, args.O, args.O);
}

void grouped_gemm(const Context& ctx, const GroupedGemmArgs& args) {
  check_groups(args.host_sizes, args.G, args.R);
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { forward<decltype(zero), decltype(operand)>(ctx, args); });
}

template <class T, class O>
static void backward(const Context& ctx, const GroupedGemmBackwardArgs& args) {
  const OperandRows<T, O> dy(ctx, args.dy, args.R, args.O), x(ctx, args.x, args.dw ? args.R : 0, args.I);
  OperandWeight<T, O> w(ctx, args.w, args.w_stored, args.compute, args.dx ? args.G : 0, args.O, args.I,
                        args.dx ? args.w_packed : nullptr);
  fill_operands(ctx, dy.fill(), x.fill(), w.fill());
  w.filled();
  const GivenGroups groups(ctx, args);
  if (args.dx)
    multiply_rows(ctx, args.compute, args.dtype, groups.get(), dy.get(), w.get(), false, args.dx, args.I, args.I);
  if (args.dw)
    multiply_over_rows(ctx, args.compute, args.dtype, groups.get(), dy.get(), x.get(), args.dw, args.O * args.I, args.O,
                       args.I);
}

void grouped_gemm_backward(const Context& ctx, const GroupedGemmBackwardArgs& args) {
  check_groups(args.host_sizes, args.G, args.R);
  dispatch_operands(args.dtype, args.compute,
                    [&](auto zero, auto operand) { backward<decltype(zero), decltype(operand)>(ctx, args); });
}

}  // namespace st_moe::cuda
