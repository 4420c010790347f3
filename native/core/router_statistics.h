#pragma once
#include <cstdint>

// What router_statistics returns, in the order of lib/ops/router-statistics.ts: these sums over the tokens that are not
// masked, then for each expert its dispatched assignments, for each expert its top-1 assignments, and for each k of the
// K, with zeros up to E, the dispatched assignments.
namespace st_moe {

enum RouterStatistic : int64_t {
  kForwards,    // 1
  kTokens,      // that are not masked
  kDropped,     // of them, without any dispatched assignment
  kSlots,       // B · E · C
  kEntropy,     // Σ −Σ_e s log s with s = softmax(logits)
  kConfidence,  // Σ max_e s
  kLogitNorm,   // Σ ‖logits‖₂
  kRouterSums,
};

constexpr int64_t router_statistics_size(int64_t E) {
  return kRouterSums + 3 * E;
}

}  // namespace st_moe
