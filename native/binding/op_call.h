#pragma once
#include "binding/call.h"
#include "core/op_fields.h"

namespace st_moe {

// A call of a declared op: the arguments in the order of its declaration (a boolean for an optional output: whether it
// is wanted) → undefined without outputs, a handle, or an array of handles and nulls.
Napi::Value call_op(Call& call, const OpInfo& op);

}  // namespace st_moe
