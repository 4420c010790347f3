#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

// Packed copies of weights, which ops make and the core keeps.
namespace st_moe {

#define ST_MOE_STRUCTS "core/abi/packed_copies.inc"
#include "core/abi/declare.inc"

}  // namespace st_moe
