#include "cpu/collective.h"

namespace st_moe::cpu::ST_MOE_ISA {

void send(const Context&, const SendArgs& args) {
  const auto size = static_cast<int64_t>(dtype_size(args.dtype));
  const CallText message("%lld × %s", static_cast<long long>(args.size), dtype_name(args.dtype));
  args.group->send("send", message.text, args.x, args.size * size, args.to);
  clear_bytes(args.sent, size);
}

}  // namespace st_moe::cpu::ST_MOE_ISA
