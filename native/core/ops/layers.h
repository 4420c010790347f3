#pragma once
#include "core/ops/args.h"

namespace st_moe {

#define ST_MOE_OPS "core/ops/layers.inc"
#include "core/ops/declare.inc"

}  // namespace st_moe
