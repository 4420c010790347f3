#include "cpu/collective.h"

namespace st_moe::cpu::ST_MOE_ISA {

void all_gather(const Context&, const AllGatherArgs& args) {
  ProcessGroup& group = *args.group;
  const CallText call("allGather(rows of %lld × %s)", static_cast<long long>(args.W), dtype_name(args.dtype));
  group.expect_same({"allGather", call.text, args.rows});
  const Scratch<int64_t> bytes(group.size());
  bytes_of_rows(args.rows, args.W, args.dtype, group.size(), bytes.get());
  const int rank = group.rank();
  copy_bytes(static_cast<char*>(args.y) + sum_before(bytes.get(), rank), args.x, bytes[rank]);
  group.all_gather("allGather", args.y, bytes.get());
}

}  // namespace st_moe::cpu::ST_MOE_ISA
