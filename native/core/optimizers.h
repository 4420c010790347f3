#pragma once
#include <cmath>

#include "core/op_args.h"
#include "core/qualifiers.h"

// The optimizers, for all backends. Each has the factors of an update, which depend on the step and the options alone,
// and the update of element i; F is a list of factors in the type of the parameter.
namespace st_moe {

#define ST_MOE_OPTIMIZERS(X) X(Adamw, adamw) X(Sgd, sgd)

constexpr int kFactors = 8;

struct FactorList {
  double value[kFactors];
};

// Decoupled weight decay, Loshchilov and Hutter (arXiv 1711.05101), in the order of torch.optim.AdamW.
template <class T, class F>
struct AdamwUpdate {
  enum : int { kDecay, kBeta1, kBlend1, kBlend2, kBeta2, kRate, kInverseRoot, kEps };

  static FactorList factors(const AdamwArgs& a) {
    const double count = static_cast<double>(a.step);
    const double correction1 = 1.0 - std::pow(a.beta1, count), correction2 = 1.0 - std::pow(a.beta2, count);
    return {{1.0 - a.lr * a.weight_decay, a.beta1, 1.0 - a.beta1, 1.0 - a.beta2, a.beta2, a.lr / correction1,
             1.0 / std::sqrt(correction2), a.eps}};
  }

  T* p;
  const T* g;
  T *m, *v;
  F f;

  AdamwUpdate(const AdamwArgs& a, const F& f)
      : p(static_cast<T*>(a.p)),
        g(static_cast<const T*>(a.g)),
        m(static_cast<T*>(a.m)),
        v(static_cast<T*>(a.v)),
        f(f) {}

  ST_MOE_HOST_DEVICE void operator()(int64_t i) const {
    const T difference = g[i] - m[i], blend1 = f[kBlend1];
    // as torch.lerp: from the nearer end, else a small g is lost in a large m
    const T first = blend1 >= T(0.5) ? g[i] - difference * f[kBeta1] : m[i] + difference * blend1;
    const T second = v[i] * f[kBeta2] + g[i] * g[i] * f[kBlend2];
    m[i] = first;
    v[i] = second;
    p[i] = p[i] * f[kDecay] - f[kRate] * (first / (std::sqrt(second) * f[kInverseRoot] + f[kEps]));
  }
};

// torch.optim.SGD
template <class T, class F>
struct SgdUpdate {
  enum : int { kRate, kMomentum, kDecay, kIsFirst };  // at the first step the buffer may hold anything

  static FactorList factors(const SgdArgs& a) { return {{a.lr, a.momentum, a.weight_decay, a.step <= 1 ? 1.0 : 0.0}}; }

  T* p;
  const T* g;
  T* buffer;  // or null
  F f;

  SgdUpdate(const SgdArgs& a, const F& f)
      : p(static_cast<T*>(a.p)), g(static_cast<const T*>(a.g)), buffer(static_cast<T*>(a.buffer)), f(f) {}

  ST_MOE_HOST_DEVICE void operator()(int64_t i) const {
    T step = g[i];
    if (buffer && f[kIsFirst] == T(0)) step += f[kMomentum] * buffer[i];
    step += f[kDecay] * p[i];
    if (buffer) buffer[i] = step;
    p[i] -= f[kRate] * step;
  }
};

template <class Args>
inline constexpr bool is_optimizer = false;
#define ST_MOE_FACTORS(Name, name)                           \
  template <>                                                \
  inline constexpr bool is_optimizer<Name##Args> = true;     \
  static inline FactorList factors_of(const Name##Args& a) { \
    return Name##Update<double, FactorList>::factors(a);     \
  }
ST_MOE_OPTIMIZERS(ST_MOE_FACTORS)
#undef ST_MOE_FACTORS

}  // namespace st_moe
