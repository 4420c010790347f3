#pragma once
#include "core/error.h"
#include "core/formulas.h"

// The functions of activations.inc.
namespace st_moe {

// The activation of the experts.
enum class Activation : int32_t {
#define ACTIVATION(name, gated, f) name,
#include "core/activations.inc"
};
constexpr const char* kActivationNames[] = {
#define ACTIVATION(name, gated, f) #name,
#include "core/activations.inc"
};
constexpr int32_t kActivationCount = sizeof kActivationNames / sizeof *kActivationNames;

ST_MOE_HOST_DEVICE static constexpr bool is_gated(Activation activation) {
  switch (activation) {
#define ACTIVATION(name, gated, f) \
  case Activation::name: return gated;
#include "core/activations.inc"
  }
  return false;
}

// Rows P of one expert's w1: columns of the pre-activations.
ST_MOE_HOST_DEVICE static constexpr int64_t w1_rows(Activation activation, int64_t H) {
  return is_gated(activation) ? 2 * H : H;
}

// Entries of b1 and mult_bias of one expert.
ST_MOE_HOST_DEVICE static constexpr int64_t hidden_biases(Activation activation, int64_t H) {
  return is_gated(activation) ? 3 * H : H;
}

// Of swiglu_clamped, as in gpt-oss: h = γ' sigmoid(alpha γ') ⊙ (v' + 1) with γ' = min(γ, limit) and v' = v clamped to
// ±limit.
template <class T>
struct ActivationNumbers {
  T limit, alpha;

  template <class Args>
  static ActivationNumbers of(const Args& args) {
    return {static_cast<T>(args.limit), static_cast<T>(args.alpha)};
  }
};

// f(z) and f'(z)
template <Activation activation, Precision precision = Precision::full, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> activate(T z, [[maybe_unused]] const ActivationNumbers<T>& n) {
#define ACTIVATION(name, gated, f) \
  if constexpr (activation == Activation::name) return f;
#include "core/activations.inc"
}

// What a gated activation multiplies f(γ) by, and its slope.
template <Activation activation, class T>
ST_MOE_HOST_DEVICE static inline ValueAndSlope<T> gated_value(T v, [[maybe_unused]] const ActivationNumbers<T>& n) {
  if constexpr (activation == Activation::swiglu_clamped) {
    const T above = v < -n.limit ? -n.limit : v, clamped = above > n.limit ? n.limit : above;
    return {clamped + T(1), clamped == v ? T(1) : T(0)};
  }
  return {v, T(1)};
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
