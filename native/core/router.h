#pragma once
#include "core/formulas.h"
#include "core/op_args.h"

namespace st_moe {

// The numbers of a router in the type of its logits, and the formulas that use them, for both backends.
template <class T>
struct RouterNumbers {
  T noise_mult, eps;

  static RouterNumbers of(const RouteArgs& args) { return {static_cast<T>(args.noise_mult), static_cast<T>(args.eps)}; }
  ST_MOE_HOST_DEVICE T noisy(T logit, T u) const { return logit + noise_mult * gumbel(u); }
  // Of a chosen expert with this score; `total` is the sum over the token's experts.
  ST_MOE_HOST_DEVICE T gate(T score, T total) const { return score / (total < eps ? eps : total); }
  ST_MOE_HOST_DEVICE bool is_routed(T u, T gate, float threshold) const {
    return routed(u, gate, static_cast<T>(threshold), eps);
  }
};

}  // namespace st_moe
