#include <new>

#include "cuda/ops.h"
#include "cuda/profile_range.h"

namespace st_moe::cuda {
namespace in_ranges {

#define OP(Name, name)                                                  \
  static void name(const Context& ctx, const Given<Name##Args>& args) { \
    const ProfileRange range(#name);                                    \
    cuda::name(ctx, args);                                              \
  }
#define ST_MOE_WITHOUT_COLLECTIVES
#include "core/op_list.inc"
#include "core/op_table.inc"
#undef ST_MOE_WITHOUT_COLLECTIVES

}  // namespace in_ranges

const OpTable& op_table() {
  return in_ranges::op_table();
}

}  // namespace st_moe::cuda
