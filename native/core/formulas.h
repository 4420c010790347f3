#pragma once
#include <cmath>

#include "core/qualifiers.h"

// Scalar formulas shared by the backends. Provisional bodies.
namespace st_moe {

template <class T> ST_MOE_HOST_DEVICE static inline T exp_of(T x) { return std::exp(x); }
template <class T> ST_MOE_HOST_DEVICE static inline T normal_cdf(T z) { return T(0.5) * std::erfc(-z * T(0.70710678118654752440)); }
template <class T> ST_MOE_HOST_DEVICE static inline T normal_pdf(T z) { return T(0.39894228040143267794) * exp_of(T(-0.5) * z * z); }
template <class T> ST_MOE_HOST_DEVICE static inline T gelu(T z) { return z * normal_cdf(z); }
template <class T> ST_MOE_HOST_DEVICE static inline T gelu_grad(T z) { return normal_cdf(z) + z * normal_pdf(z); }

}  // namespace st_moe
