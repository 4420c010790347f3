#include "cpu/collective.h"

namespace st_moe::cpu::ST_MOE_ISA {

void broadcast(const Context&, const BroadcastArgs& args) {
  ProcessGroup& group = *args.group;
  const CallText call("broadcast(%lld × %s from rank %d)", static_cast<long long>(args.size), dtype_name(args.dtype),
                      args.root);
  group.expect_same({"broadcast", call.text});
  const int64_t bytes = args.size * static_cast<int64_t>(dtype_size(args.dtype));
  if (group.rank() == args.root) copy_bytes(args.y, args.x, bytes);
  group.broadcast("broadcast", args.y, bytes, args.root);
}

// Each rank adds up a part, and sends it to the root.
void broadcast_backward(const Context& ctx, const BroadcastBackwardArgs& args) {
  ProcessGroup& group = *args.group;
  const char* what = "backward of broadcast";
  const int ranks = group.size();
  const bool is_root = group.rank() == args.root;
  const CallText call("backward of broadcast(%lld × %s from rank %d)", static_cast<long long>(args.size),
                      dtype_name(args.dtype), args.root);
  group.expect_same({what, call.text});
  const Scratch<int64_t> lists(3 * ranks);
  int64_t *parts = lists.get(), *sent = parts + ranks, *received = sent + ranks;
  divide(args.size, args.dtype, ranks, parts);
  const int64_t own = parts[group.rank()];
  const ExchangeMemory sum(group, own);
  reduce_to_parts(ctx, group, what, Reduction::sum, args.dtype, args.dy, parts, sum.get());
  for (int rank = 0; rank < ranks; ++rank) {
    sent[rank] = rank == args.root ? own : 0;
    received[rank] = is_root ? parts[rank] : 0;
  }
  if (!is_root) clear_bytes(args.dx, args.size * static_cast<int64_t>(dtype_size(args.dtype)));
  group.all_to_all(what, sum.get(), sent, args.dx, received);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
