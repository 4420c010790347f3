#include "cpu/collective.h"

namespace st_moe::cpu::ST_MOE_ISA {

void all_to_all(const Context&, const AllToAllArgs& args) {
  ProcessGroup& group = *args.group;
  const int ranks = group.size();
  const Scratch<int64_t> bytes(2 * ranks);
  int64_t *sent = bytes.get(), *received = sent + ranks;
  bytes_of_rows(args.sent, args.W, args.dtype, ranks, sent);
  bytes_of_rows(args.received, args.W, args.dtype, ranks, received);
  const CallText call("allToAll(rows of %lld × %s)", static_cast<long long>(args.W), dtype_name(args.dtype));
  group.expect_same({"allToAll", call.text, nullptr, args.sent, args.received});
  group.all_to_all("allToAll", args.x, sent, args.y, received);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
