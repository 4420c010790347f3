#pragma once
#include "core/ops/args.h"

namespace st_moe {

enum class UnaryKind : int32_t;   // unary.h
enum class BinaryKind : int32_t;  // binary.h

#define ST_MOE_OPS "core/ops/elementwise.inc"
#include "core/ops/declare.inc"

}  // namespace st_moe
