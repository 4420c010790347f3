#pragma once
#include "binding/call.h"
#include "core/op_fields.h"

namespace st_moe {

// A call of a declared op: arguments in the order of the declaration (a boolean requests an optional output) →
// undefined without outputs, a handle, or an array of handles and nulls. A batch is one Float64Array.
Napi::Value call_op(Call& call, const OpInfo& op);

}  // namespace st_moe
