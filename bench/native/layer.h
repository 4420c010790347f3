#pragma once
#include "declared.h"

namespace st_moe::bench {

// The layer as the addon runs it: route, experts, and back. Weights as a fresh layer has them, inputs normal.
class Layer {
 public:
  using Pass = std::function<void(int threads)>;
  Layer(const Bench& bench, const LayerSizes& sizes);

  Pass forward(DType compute, bool save) const;  // save: for a backward
  Pass backward(DType compute) const;            // the sum of both gradients of x too
  void change_weights() const;                   // as an optimizer does: what was packed of them is packed anew

  double flops() const;  // of the GEMMs of a forward; a backward has twice as many
  // Of some tokens after a forward, against plain loops in double. Throws if it is more than rounding explains.
  double error(DType compute) const;

  const LayerSizes sizes;
  std::vector<int64_t> expert_rows;  // that the backend computes, of each expert
  double kept, occupancy;            // fractions of the assignments that are dispatched, and of the slots
  Tensor w1, w2;
  mutable Memory memory;

 private:
  DeclaredOp op(const char* name, DType compute = DType::f32,
                const std::map<std::string, std::string>& renamed = {}) const;

  const Bench& bench_;
  bool sorted_;  // the plan has rows for dispatched assignments alone
  Values values_;
};

}  // namespace st_moe::bench
