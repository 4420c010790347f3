#pragma once
#include "core/backend.h"

// One file each in this folder, of the same name as in cpu/, forward and backward together.
namespace st_moe::cuda {

#define ST_MOE_WITHOUT_COLLECTIVES  // they are the CPU's
#include "core/op_declarations.inc"
#undef ST_MOE_WITHOUT_COLLECTIVES

const OpTable& op_table();

// Backend::saved_values
int64_t saved_values(Activation activation, int64_t H, DType compute);

}  // namespace st_moe::cuda
