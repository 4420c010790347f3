#pragma once
#include <type_traits>

#include "core/ops/attention.h"
#include "core/ops/collectives.h"
#include "core/ops/creation.h"
#include "core/ops/elementwise.h"
#include "core/ops/layers.h"
#include "core/ops/moe.h"
#include "core/ops/optimizers.h"
#include "core/ops/reductions.h"

// The arguments of each op: plain data, so that a backend may be in a plugin. The ops are declared in ops.inc.
namespace st_moe {

template <class Args>
inline constexpr bool is_batch = requires { Args::is_batch; };
template <class Args>
inline constexpr bool takes_memory = requires { Args::takes_memory; };
template <class Args>
using Given = std::conditional_t<is_batch<Args>, Batch<Args>, Args>;

template <class Args>
using Op = Status (*)(const Context&, const Args&);

}  // namespace st_moe
