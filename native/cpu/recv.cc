#include "cpu/collective.h"

namespace st_moe::cpu::ST_MOE_ISA {

void recv(const Context&, const RecvArgs& args) {
  const CallText message("%lld × %s", static_cast<long long>(args.size), dtype_name(args.dtype));
  args.group->recv("recv", message.text, args.out, args.size * static_cast<int64_t>(dtype_size(args.dtype)), args.from);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
