#pragma once
#include "core/qualifiers.h"

namespace st_moe {

// What gradients of this norm are multiplied by: 1 if it is not finite or at most `max`. Pascanu et al., arXiv
// 1211.5063, §3.2, with the epsilon of torch.nn.utils.clip_grad_norm_.
ST_MOE_HOST_DEVICE static inline double clip_factor(double norm, double max) {
  return norm > max && norm - norm == 0 ? max / (norm + 1e-6) : 1.0;
}

}  // namespace st_moe
