#include "cpu/collective.h"

namespace st_moe::cpu::ST_MOE_ISA {

// Up to this many bytes of all ranks, one exchange of everything is faster than two of parts.
constexpr int64_t kWholeBytes = 64 << 10;

static const char* name_of(Reduction reduction) {
  return reduction == Reduction::sum ? "sum" : reduction == Reduction::max ? "max" : "min";
}

void all_reduce(const Context& ctx, const AllReduceArgs& args) {
  ProcessGroup& group = *args.group;
  const char* what = "allReduce";
  const int ranks = group.size();
  const CallText call("allReduce(%s, %lld × %s)", name_of(args.reduction), static_cast<long long>(args.size),
                      dtype_name(args.dtype));
  group.expect_same({what, call.text});
  const int64_t bytes = args.size * static_cast<int64_t>(dtype_size(args.dtype));
  const Scratch<int64_t> parts(ranks);
  if (bytes * ranks <= kWholeBytes) {
    for (int rank = 0; rank < ranks; ++rank) parts[rank] = bytes;
    const ExchangeMemory all(group, bytes * ranks);
    copy_bytes(all.get() + bytes * group.rank(), args.x, bytes);
    group.all_gather(what, all.get(), parts.get());
    return reduce_parts(ctx, args.reduction, args.dtype, all.get(), ranks, args.size, args.y);
  }
  divide(args.size, args.dtype, ranks, parts.get());
  char* own = static_cast<char*>(args.y) + sum_before(parts.get(), group.rank());
  reduce_to_parts(ctx, group, what, args.reduction, args.dtype, args.x, parts.get(), own);
  group.all_gather(what, args.y, parts.get());
}

}  // namespace st_moe::cpu::ST_MOE_ISA
