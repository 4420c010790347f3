#include <new>

#include "cuda/ops.h"

namespace st_moe::cuda {

#include "core/op_table.inc"

}  // namespace st_moe::cuda
