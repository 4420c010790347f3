#pragma once
#include "core/ops/args.h"

namespace st_moe {

ST_MOE_ENUM(Distribution, uniform, normal);

#define ST_MOE_OPS "core/ops/creation.inc"
#include "core/ops/declare.inc"

}  // namespace st_moe
