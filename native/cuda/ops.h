#pragma once
#include "core/backend.h"

// One file each in this folder, of the same name as in cpu/, forward and backward together.
namespace st_moe::cuda {

#include "core/op_declarations.inc"

const OpTable& op_table();

// Backend::saved_values
int64_t saved_values(Activation activation, int64_t H, DType compute);

}  // namespace st_moe::cuda
