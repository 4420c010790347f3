#pragma once
#include <cstdint>

// What changes from one replay of a captured step to the next.
namespace st_moe {

constexpr int kFactors = 8;  // of one parameter update, see optimizers.h

#define ST_MOE_STRUCTS "core/abi/steps.inc"
#include "core/abi/declare.inc"

}  // namespace st_moe
