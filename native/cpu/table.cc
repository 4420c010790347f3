#include <new>

#include "cpu/ops.h"

namespace st_moe::cpu::ST_MOE_ISA {

#include "core/op_table.inc"

}  // namespace st_moe::cpu::ST_MOE_ISA
