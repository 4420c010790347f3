#pragma once
#include "core/ops/args.h"

namespace st_moe {

ST_MOE_ENUM(Reduction, sum, max, min);

#define ST_MOE_OPS "core/ops/collectives.inc"
#include "core/ops/declare.inc"

}  // namespace st_moe
