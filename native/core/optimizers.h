#pragma once
#include <cmath>

#include "core/ops/optimizers.h"
#include "core/qualifiers.h"
#include "core/steps.h"

// The optimizers, for all backends. Each has the factors of an update, which depend on the step and the options alone,
// its state, all or none of which is there, and the update of one element with the factors f in the parameter's type.
// The average of parameters is one too: it updates the average, and the parameter takes the gradient's place.
namespace st_moe {

#define FACTORS(Name, name, ...) \
  struct Name##Factors {         \
    enum : int { __VA_ARGS__ };  \
  };
#define TENSOR_FACTORS FACTORS
#define ST_MOE_OPS "core/ops/optimizers.inc"
#include "core/op_list.inc"

// Decoupled weight decay, Loshchilov and Hutter (arXiv 1711.05101), in the order of torch.optim.AdamW.
struct AdamwUpdate : AdamwFactors {
  static FactorList factors(const AdamwArgs& a) {
    const double count = static_cast<double>(a.step);
    const double correction1 = 1.0 - std::pow(a.beta1, count), correction2 = 1.0 - std::pow(a.beta2, count);
    return {{1.0 - a.lr * a.weight_decay, a.beta1, 1.0 - a.beta1, 1.0 - a.beta2, a.beta2, a.lr / correction1,
             1.0 / std::sqrt(correction2), a.eps}};
  }

  static constexpr int kState = 2;
  static void* state(const AdamwArgs& a, int i) { return i == 0 ? a.m : a.v; }

  template <class T>
  ST_MOE_HOST_DEVICE static void apply(const T* f, T& p, T g, T* state) {
    const T m = state[0], difference = g - m, blend1 = f[kBlend1];
    // as torch.lerp: from the nearer end, else a small g is lost in a large m
    const T first = blend1 >= T(0.5) ? g - difference * f[kBeta1] : m + difference * blend1;
    const T second = state[1] * f[kBeta2] + g * g * f[kBlend2];
    state[0] = first;
    state[1] = second;
    p = p * f[kDecay] - f[kRate] * (first / (std::sqrt(second) * f[kInverseRoot] + f[kEps]));
  }
};

// torch.optim.SGD
struct SgdUpdate : SgdFactors {
  static FactorList factors(const SgdArgs& a) { return {{a.lr, a.momentum, a.weight_decay, a.step <= 1 ? 1.0 : 0.0}}; }

  static constexpr int kState = 1;
  static void* state(const SgdArgs& a, int) { return a.buffer; }

  template <class T>
  ST_MOE_HOST_DEVICE static void apply(const T* f, T& p, T g, T* state) {
    T step = g;
    if (f[kIsFirst] == T(0)) step += f[kMomentum] * state[0];
    step += f[kDecay] * p;
    state[0] = step;
    p -= f[kRate] * step;
  }
};

// Chen et al. (arXiv 2302.06675), algorithm 2. The sign of NaN is NaN.
struct LionUpdate : LionFactors {
  static FactorList factors(const LionArgs& a) {
    return {{1.0 - a.lr * a.weight_decay, a.beta1, 1.0 - a.beta1, a.beta2, 1.0 - a.beta2, a.lr}};
  }

  static constexpr int kState = 1;
  static void* state(const LionArgs& a, int) { return a.m; }

  template <class T>
  ST_MOE_HOST_DEVICE static void apply(const T* f, T& p, T g, T* state) {
    const T m = state[0], blended = m * f[kBeta1] + g * f[kBlend1];
    const T sign = blended > T(0) ? T(1) : blended < T(0) ? T(-1) : blended;
    state[0] = m * f[kBeta2] + g * f[kBlend2];
    p = p * f[kDecay] - f[kRate] * sign;
  }
};

struct EmaUpdate : EmaFactors {
  static FactorList factors(const EmaArgs& a) { return {{1.0 - a.decay}}; }

  static constexpr int kState = 0;
  static void* state(const EmaArgs&, int) { return nullptr; }

  template <class T>
  ST_MOE_HOST_DEVICE static void apply(const T* f, T& average, T p, T*) {
    average += f[kBlend] * (p - average);
  }
};

// The norm of all gradients of a step, or null.
template <class Args>
static inline const double* norm_of(const Args& a) {
  if constexpr (requires { a.norm; })
    return a.norm;
  else
    return nullptr;
}

// Whether an update whose gradients have this norm changes nothing.
ST_MOE_HOST_DEVICE static inline bool skips(const double* norm) {
  return norm && *norm - *norm != 0;
}

// Elements of an array of state, which has one at least.
template <class Update>
inline constexpr int kStateSlots = Update::kState > 0 ? Update::kState : 1;

// What an update changes, what it reads, and the packed copies of the former, or null.
struct UpdateOperands {
  void* p;
  const void* g;
  PackedCopies* packed;
};
template <class Args>
static inline UpdateOperands operands_of(const Args& a) {
  return {a.p, a.g, a.p_packed};
}
static inline UpdateOperands operands_of(const EmaArgs& a) {
  return {a.average, a.p, nullptr};
}

// Calls f(part, norm) for the parts of the batch that have one norm.
template <class Args, class F>
void by_norm(const Batch<Args>& batch, F f) {
  for (int64_t first = 0, last; first < batch.count; first = last) {
    const double* const norm = norm_of(batch.items[first]);
    for (last = first + 1; last < batch.count && norm_of(batch.items[last]) == norm;) ++last;
    f(Batch<Args>{batch.items + first, last - first}, norm);
  }
}

// u = g / √v, or of matrices g / √(row · col / mean of row).
struct AdafactorUpdate : AdafactorFactors {
  static FactorList factors(const AdafactorArgs& a) {
    const double blend = std::pow(static_cast<double>(a.step), a.decay_rate);
    return {{1.0 - blend, blend, a.lr, a.eps1, a.scale != 0 ? a.eps2 : -1, a.clip, a.beta1, a.weight_decay}};
  }

  // A second moment after gradients with this mean of squares.
  template <class T>
  ST_MOE_HOST_DEVICE static T moment(const T* f, T moment, T squares) {
    return f[kBeta2] * moment + f[kBlend2] * (squares + f[kEps1]);
  }

  // α, from the sum of squares of p [size], and α / max(1, rms(u) / clip) from that of u.
  template <class T>
  ST_MOE_HOST_DEVICE static void rates(const T* f, double p, double u, int64_t size, T* rate, T* clipped) {
    const double count = static_cast<double>(size), rms = std::sqrt(p / count), least = static_cast<double>(f[kEps2]);
    const double alpha = static_cast<double>(f[kRate]) * (least < 0 ? 1.0 : rms > least || rms != rms ? rms : least);
    const double over = std::sqrt(u / count) / static_cast<double>(f[kClip]);
    *rate = static_cast<T>(alpha);
    *clipped = static_cast<T>(over > 1 || over != over ? alpha / over : alpha);
  }

  template <class T>
  ST_MOE_HOST_DEVICE static void apply(const T* f, T rate, T clipped, T& p, T u, T* m) {
    T step = clipped * u;
    if (m) step = *m = f[kBeta1] * *m + (T(1) - f[kBeta1]) * step;
    p -= f[kDecay] * rate * p + step;
  }
};

template <class Args>
inline constexpr bool is_optimizer = false;
#define FACTORS(Name, name, ...)                             \
  template <>                                                \
  inline constexpr bool is_optimizer<Name##Args> = true;     \
  static inline FactorList factors_of(const Name##Args& a) { \
    return Name##Update::factors(a);                         \
  }
#define TENSOR_FACTORS FACTORS
#define ST_MOE_OPS "core/ops/optimizers.inc"
#include "core/op_list.inc"

}  // namespace st_moe
