#pragma once
#include <cstdint>

#include "core/error.h"
#include "core/formulas.h"

// The activations of the experts: a name, whether it is gated, and the function f, of which formulas.h has the value
// and the slope as f##_with_slope.
//   gated (Shazeer, arXiv 2002.05202): [v ; γ] = x W1ᵀ + b1 with W1 [E, 2H, D], h = f(γ) ⊙ v ⊙ μ
//   plain: v = x W1ᵀ + b1 with W1 [E, H, D], h = f(v)
#define ST_MOE_ACTIVATIONS(X)    \
  X(geglu, true, gelu)           \
  X(geglu_tanh, true, gelu_tanh) \
  X(swiglu, true, silu)          \
  X(reglu, true, relu)           \
  X(gelu, false, gelu)           \
  X(gelu_tanh, false, gelu_tanh) \
  X(relu, false, relu)           \
  X(silu, false, silu)           \
  X(relu2, false, relu2)

namespace st_moe {

#define ST_MOE_ACTIVATION(name, gated, f) name,
enum class Activation : int32_t { ST_MOE_ACTIVATIONS(ST_MOE_ACTIVATION) };
#undef ST_MOE_ACTIVATION

#define ST_MOE_ACTIVATION(name, gated, f) #name,
constexpr const char* kActivationNames[] = {ST_MOE_ACTIVATIONS(ST_MOE_ACTIVATION)};
#undef ST_MOE_ACTIVATION
constexpr int32_t kActivationCount = sizeof kActivationNames / sizeof *kActivationNames;

ST_MOE_HOST_DEVICE static constexpr bool is_gated(Activation activation) {
#define ST_MOE_ACTIVATION(name, gated, f) \
  if (activation == Activation::name) return gated;
  ST_MOE_ACTIVATIONS(ST_MOE_ACTIVATION)
#undef ST_MOE_ACTIVATION
  return false;
}

// Rows of one expert's W1: columns of the pre-activations.
ST_MOE_HOST_DEVICE static constexpr int64_t w1_rows(Activation activation, int64_t H) {
  return is_gated(activation) ? 2 * H : H;
}

// Entries of b1 and mult_bias of one expert.
ST_MOE_HOST_DEVICE static constexpr int64_t hidden_biases(Activation activation, int64_t H) {
  return is_gated(activation) ? 3 * H : H;
}

// f(z) and f'(z)
template <Activation activation, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> activate(T z) {
#define ST_MOE_ACTIVATION(name, gated, f) \
  if constexpr (activation == Activation::name) return f##_with_slope(z);
  ST_MOE_ACTIVATIONS(ST_MOE_ACTIVATION)
#undef ST_MOE_ACTIVATION
}

template <Activation activation>
struct ActivationTag {
  static constexpr Activation value = activation;
};

// Calls f(ActivationTag<activation>{}).
template <class F>
static inline void dispatch_activation(Activation activation, F&& f) {
#define ST_MOE_ACTIVATION(name, gated, function) \
  if (activation == Activation::name) return f(ActivationTag<Activation::name>{});
  ST_MOE_ACTIVATIONS(ST_MOE_ACTIVATION)
#undef ST_MOE_ACTIVATION
  fail(ErrorCode::option, "unknown activation %d", static_cast<int>(activation));
}

}  // namespace st_moe
