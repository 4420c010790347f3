#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/error.h"

// What every op gets and returns: its resources, a status, and the arguments of a batch.
namespace st_moe {

constexpr int kMaxRank = 8;
constexpr int64_t kMaxElements = int64_t{1} << 46;  // of a tensor, and of one dimension

#define ST_MOE_STRUCTS "core/abi/context.inc"
#include "core/abi/declare.inc"

}  // namespace st_moe
