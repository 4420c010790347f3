#pragma once
#include "core/formulas.h"
#include "core/op_args.h"

// The functions of activations.inc.
namespace st_moe {

// f(z) and f'(z)
template <Activation activation, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> activate(T z) {
#define ACTIVATION(name, gated, f) \
  if constexpr (activation == Activation::name) return f;
#include "core/activations.inc"
}

template <Activation activation>
struct ActivationTag {
  static constexpr Activation value = activation;
};

// Calls f with the activation as a type: ActivationTag<…>.
template <class F>
static inline void dispatch_activation(Activation activation, F&& f) {
  switch (activation) {
#define ACTIVATION(name, gated, formula) \
  case Activation::name: return f(ActivationTag<Activation::name>{});
#include "core/activations.inc"
  }
  fail(ErrorCode::option, "unknown activation %d", static_cast<int>(activation));
}

}  // namespace st_moe
