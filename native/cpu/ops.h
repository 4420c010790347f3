#pragma once
#include "core/backend.h"

// One file each in this folder, forward and backward together.
namespace st_moe::cpu::ST_MOE_ISA {

#include "core/op_declarations.inc"

const OpTable& op_table();

}  // namespace st_moe::cpu::ST_MOE_ISA
