#pragma once
#include <cstdint>

#include "core/context.h"
#include "core/enum.h"
#include "core/pack.h"

// What the arguments of the ops are made of. Each list of this folder has a header of its structs, so that a kernel is
// compiled again only if the ops of its subject change.
namespace st_moe {

class ProcessGroup;  // process_group.h

// The element types of the tensor types in the lists.
struct Element {
  using real = void;
  using any = void;
  using i32 = int32_t;
  using f32 = float;
  using f64 = double;
};

}  // namespace st_moe
