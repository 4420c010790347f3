#include "cpu/collective.h"

namespace st_moe::cpu::ST_MOE_ISA {

void reduce_scatter(const Context& ctx, const ReduceScatterArgs& args) {
  ProcessGroup& group = *args.group;
  const CallText call("reduceScatter(rows of %lld × %s)", static_cast<long long>(args.W), dtype_name(args.dtype));
  group.expect_same({"reduceScatter", call.text, args.rows});
  const Scratch<int64_t> bytes(group.size());
  bytes_of_rows(args.rows, args.W, args.dtype, group.size(), bytes.get());
  reduce_to_parts(ctx, group, "reduceScatter", Reduction::sum, args.dtype, args.x, bytes.get(), args.y);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
