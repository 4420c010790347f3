#pragma once
#include "core/convert.h"

namespace st_moe::cpu::ST_MOE_ISA {

#include "core/element_types.inc"

}  // namespace st_moe::cpu::ST_MOE_ISA
